"""Push against a real Label Studio: every painting there once, whatever happens on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Painter
from PIL import Image

from annotate import connection, push, server
from annotate.access import connect
from annotate.commands import annotate
from annotate.config import PushConfig
from annotate.errors import UserError
from annotate.lock import alone
from annotate.paintings import load_painting, read_index
from annotate.push import PushResult
from annotate.workspace import Workspace
from bench.proxy import Fault, faulty

pytestmark = pytest.mark.server
ALL = PushConfig(strategy="all")
STRANGE = ("plain", "1998/Été #3 'blue' \"x\"", "with space & <tag>", "a%20b", "dot.in.name")


def tasks(workspace: Workspace) -> list[str]:
    """The keys on the server, sorted; a key twice stands there twice."""
    studio = connect(workspace)
    try:
        return sorted(task.key for task in studio.tasks(studio.project(workspace)))
    finally:
        studio.close()


def send(workspace: Workspace, folder: Path, config: PushConfig = ALL) -> PushResult:
    return push.push(workspace, folder, config)


def test_a_second_push_adds_nothing_and_a_third_only_what_is_new(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    folder = tmp_path / "paintings"
    for seed, name in enumerate(STRANGE):
        paint(folder / f"{name}.png", seed=seed)
    first = send(remote, folder)
    assert (first.paintings, first.chosen, first.added, first.there, first.problems) == (5, 5, 5, 0, ())
    second = send(remote, folder)
    assert (second.project, second.added, second.there) == (first.project, 0, 5)
    paint(folder / "new.jpg", seed=9)
    third = send(remote, folder)
    assert (third.added, third.there) == (1, 5)
    assert tasks(remote) == sorted([*STRANGE, "new"])
    assert first.url == f"{os.environ['LABEL_STUDIO_URL']}/projects/{first.project}/data"
    assert remote.report("annotate-push") == {
        "paintings": 6, "chosen": 6, "added": 1, "there": 5, "left_out": 0, "url": first.url,
    }  # fmt: skip


def test_a_growing_fraction_keeps_the_earlier_ones(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    folder = tmp_path / "paintings"
    for seed in range(12):
        paint(folder / f"{seed}.png", seed=seed)
    assert send(remote, folder, PushConfig()).chosen == 3
    quarter = set(tasks(remote))
    grown = send(remote, folder, PushConfig(fraction=0.4))
    assert (grown.chosen, grown.added, grown.there) == (5, 2, 3)
    assert quarter < set(tasks(remote))
    assert remote.settings().fraction == 0.4
    again = send(remote, folder, PushConfig())
    assert (again.chosen, again.added) == (5, 0)
    assert {key for key, one in read_index(remote).items() if one.split == "hand"} == set(tasks(remote))
    wanted = tmp_path / "keys.txt"
    missing = sorted({str(n) for n in range(12)} - set(tasks(remote)))[0]
    wanted.write_text(f"# the one I like\n{missing}\n\n")
    assert send(remote, folder, PushConfig(keys=wanted)).added == 1
    assert missing in tasks(remote)


def test_bad_files_are_reported_and_the_rest_goes_on(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    folder = tmp_path / "paintings"
    good = paint(folder / "good.png")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:-60])
    Image.fromarray(good).save(folder / "scan.tif")
    command = ["push", str(folder), "--strategy", "all", "-w", str(remote.root)]
    done = CliRunner().invoke(annotate, command)
    assert done.exit_code == 1
    assert "2 of 2 paintings to annotate: 2 sent now" in done.stdout
    assert "left out:" in done.stderr
    assert "empty.png: empty file" in done.stderr
    assert "cut.png: not a readable image" in done.stderr
    assert "error: 2 left out, the rest is done" in done.stderr
    assert tasks(remote) == ["good", "scan"]
    as_json = CliRunner().invoke(annotate, [*command, "--json"])
    shown = json.loads(as_json.stdout)
    assert (shown["added"], shown["there"], len(shown["problems"])) == (0, 2, 2)


def test_the_browser_gets_what_the_painting_shows(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    folder = tmp_path / "paintings"
    pixels = paint(folder / "plain.png", (40, 60))
    Image.fromarray(pixels).save(folder / "scan.tif")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=turned, quality=95)
    result = send(remote, folder)
    headers = {"Authorization": f"Token {os.environ['LABEL_STUDIO_API_KEY']}"}
    base = os.environ["LABEL_STUDIO_URL"]
    with httpx.Client(base_url=base, headers=headers) as client:
        rows = client.get("/api/tasks/", params={"project": result.project, "fields": "all"}).json()["tasks"]
        shown = {row["data"]["key"]: client.get(row["data"]["image"]).content for row in rows}
    assert shown["plain"] == (folder / "plain.png").read_bytes()
    for name in ("scan.tif", "turned.jpg"):
        (tmp_path / "shown.png").write_bytes(shown[Path(name).stem])
        with Image.open(tmp_path / "shown.png") as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), load_painting(folder / name))
    assert read_index(remote)["turned"].size == (60, 40)


def test_a_painting_that_changed_is_reported_and_not_replaced(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    folder = tmp_path / "paintings"
    paint(folder / "a.png", seed=1)
    paint(folder / "b.png", seed=2)
    send(remote, folder)
    before = read_index(remote)["a"]
    paint(folder / "a.png", (30, 20), seed=3)
    for _ in range(2):
        result = send(remote, folder)
        assert (result.added, len(result.problems)) == (0, 1)
        assert "a.png: changed since it was sent (task" in result.problems[0]
        assert read_index(remote)["a"] == before, "size and digest are those of what is being annotated"
    studio = connect(remote)
    doomed = next(task.id for task in studio.tasks(result.project) if task.key == "a")
    studio.delete_task(doomed)
    studio.delete_task(doomed)  # twice does no harm
    studio.close()
    after = send(remote, folder)
    assert (after.added, after.problems) == (1, ())
    assert read_index(remote)["a"].size == (30, 20)


def test_a_project_that_was_deleted_is_made_anew(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    paint(tmp_path / "paintings" / "a.png")
    first = send(remote, tmp_path / "paintings")
    studio = connect(remote)
    studio.connection.send("DELETE", f"api/projects/{first.project}/", repeat=True)
    with pytest.raises(UserError, match=f"project {first.project} was deleted there; `tool annotate push"):
        studio.project(remote)
    studio.close()
    second = send(remote, tmp_path / "paintings")
    assert second.project != first.project
    assert second.added == 1
    assert remote.settings().studio_project == second.project


def test_a_push_killed_before_it_noted_its_project_finds_it_again(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    paint(tmp_path / "paintings" / "a.png")
    first = send(remote, tmp_path / "paintings")
    remote.settings_file.unlink()
    second = send(remote, tmp_path / "paintings")
    assert (second.project, second.added) == (first.project, 0)


def test_a_painting_that_went_is_told(
    remote: Workspace, tmp_path: Path, paint: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        paint(tmp_path / "paintings" / f"{name}.png")
    send(remote, tmp_path / "paintings")
    (tmp_path / "paintings" / "a.png").unlink()
    capsys.readouterr()
    send(remote, tmp_path / "paintings")
    assert "no longer on the disk, and taken off the list: a\n" in capsys.readouterr().err
    assert set(read_index(remote)) == {"b"}


def test_classes_reach_the_project_and_a_persons_own_labels_stay(
    remote: Workspace, tmp_path: Path, paint: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "paintings" / "a.png")
    project = send(remote, tmp_path / "paintings").project
    studio = connect(remote)

    def config() -> str:
        return str(studio.connection.get(f"api/projects/{project}/")["label_config"])

    mine = config().replace("</Labels>", '<Label value="my own"/></Labels>')
    studio.connection.send("PATCH", f"api/projects/{project}/", repeat=True, json={"label_config": mine})
    send(remote, tmp_path / "paintings")
    assert "my own" in config()
    assert "written anew" not in capsys.readouterr().err
    remote.settings_file.write_text(
        remote.settings_file.read_text()
        + '\n[[classes]]\nname = "Nebel & \\"Dunst\\""\nid = 119\ncolor = "#cccccc"\norder = 9\n'
    )
    send(remote, tmp_path / "paintings")
    assert "Nebel &amp; &quot;Dunst&quot;" in config()
    assert "its labelling interface was written anew" in capsys.readouterr().err
    studio.close()


@pytest.mark.parametrize("fault", ["deaf", "drop", "cut", 502])
def test_a_broken_connection_makes_no_duplicate(
    remote: Workspace, tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(push, "BATCH_FILES", 3)
    for seed in range(7):
        paint(tmp_path / "paintings" / f"{seed}.png", seed=seed)
    spoiled = []

    def choose(number: int, method: str, path: str) -> Fault:
        # the first time at every step of the first batch, the worst of them after the tasks were made
        step = f"{method} {path.split('?')[0]}{'?' if 'commit_to_project' in path else ''}"
        if "projects/" in step and step not in spoiled and "/import" in step + path:
            spoiled.append(step)
            return fault
        return None

    with faulty(os.environ["LABEL_STUDIO_URL"], choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        result = send(remote, tmp_path / "paintings")
        assert len(spoiled) == 2
        assert (result.added, result.problems) == (7, ())
        assert tasks(remote) == [str(n) for n in range(7)]


def test_a_server_that_goes_away_is_one_line_and_the_next_push_completes(
    remote: Workspace, tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(push, "BATCH_FILES", 2)
    for seed in range(6):
        paint(tmp_path / "paintings" / f"{seed}.png", seed=seed)
    sent = 0

    def choose(number: int, method: str, path: str) -> Fault:
        nonlocal sent
        sent += "commit_to_project" in path
        return "drop" if sent >= 2 else None

    real = os.environ["LABEL_STUDIO_URL"]
    with faulty(real, choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        done = CliRunner().invoke(
            annotate, ["push", str(tmp_path / "paintings"), "--strategy", "all", "-w", str(remote.root)]
        )
        assert done.exit_code == 1
        assert "Label Studio does not answer" in done.stderr
        assert "Traceback" not in done.output
        sent = -100
        result = send(remote, tmp_path / "paintings")
        assert (result.added, result.there) == (4, 2)
        assert tasks(remote) == [str(n) for n in range(6)]


def test_duplicates_of_an_older_accident_go_and_annotated_ones_stay(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    for seed in range(2):
        paint(tmp_path / "paintings" / f"{seed}.png", seed=seed)
    project = send(remote, tmp_path / "paintings").project
    studio = connect(remote)
    rows = studio.connection.get("api/tasks/", {"project": project, "fields": "all"})["tasks"]
    copies = [{"data": row["data"]} for row in rows]
    studio.connection.send("POST", f"api/projects/{project}/import", repeat=False, json=copies)
    doubled = list(studio.tasks(project))
    assert len(doubled) == 4
    newest = max(task.id for task in doubled if task.key == "1")
    studio.annotate(newest, [])
    result = send(remote, tmp_path / "paintings")
    assert (result.added, result.there) == (0, 2)
    left = list(studio.tasks(project))
    studio.close()
    assert sorted(task.key for task in left) == ["0", "1"]
    assert newest in {task.id for task in left}


def test_a_second_push_at_the_same_time_is_refused(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    """Each would make a project, and the first one's be forgotten with all that is drawn there."""
    paint(tmp_path / "paintings" / "a.png")
    with (
        alone(remote),
        pytest.raises(UserError, match="another push or review is sending to Label Studio; wait for its end"),
    ):
        send(remote, tmp_path / "paintings")
    assert send(remote, tmp_path / "paintings").added == 1


def test_a_list_of_keys_may_come_from_an_editor_of_windows(
    remote: Workspace, tmp_path: Path, paint: Painter
) -> None:
    for name in "abc":
        paint(tmp_path / "paintings" / f"{name}.png")
    (tmp_path / "keys.txt").write_bytes("\ufeffb\r\nc\r\n".encode())
    assert send(remote, tmp_path / "paintings", PushConfig(keys=tmp_path / "keys.txt")).chosen == 2
    assert {key for key, one in read_index(remote).items() if one.split == "hand"} == {"b", "c"}


@pytest.mark.parametrize("more", [["--fraction", "0.5"], ["--strategy", "all"]])
def test_keys_choose_alone(tmp_path: Path, more: list[str]) -> None:
    words = ["push", str(tmp_path), "-w", str(tmp_path), "--keys", "keys.txt", *more]
    result = CliRunner().invoke(annotate, words)
    assert result.exit_code == 2
    assert "--keys chooses exactly what it lists: leave out --fraction and --strategy" in result.stderr


def test_one_key_never_means_two_paintings(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    paint(tmp_path / "one" / "a.png", seed=1)
    paint(tmp_path / "two" / "a.png", seed=2)
    paint(tmp_path / "two" / "b.png", seed=3)
    send(remote, tmp_path / "one")
    with pytest.raises(UserError, match=r"one/a\.png and .*two/a\.png share the key 'a'"):
        send(remote, tmp_path / "two")
    (tmp_path / "two" / "a.png").unlink()
    send(remote, tmp_path / "two")
    assert set(read_index(remote)) == {"a", "b"}, "the first folder's painting is still there"
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = send(remote, tmp_path / "moved")
    assert moved.added == 0
    assert "moved" in read_index(remote)["a"].path


def test_the_embedded_server_is_used_where_no_address_is_given(
    embedded: Workspace, tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "of another server")
    paint(tmp_path / "paintings" / "a.png")
    result = send(embedded, tmp_path / "paintings")
    running = server.running(embedded)
    assert running is not None
    assert result.url.startswith(running.url)
    assert result.login == server.login(embedded)
    assert embedded.settings().studio_url == "", "its port may change"
    done = CliRunner().invoke(
        annotate, ["push", str(tmp_path / "paintings"), "-w", str(embedded.root), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert server.login(embedded).key not in done.output
