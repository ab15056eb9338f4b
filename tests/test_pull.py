"""Pull against a real Label Studio: what was drawn comes back pixel by pixel, and only what changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Painter
from numpy.typing import NDArray
from PIL import Image

from annotate import connection
from annotate.access import connect
from annotate.classes import UNLABELLED
from annotate.commands import annotate
from annotate.config import PullConfig, PushConfig
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask
from annotate.pull import Outcome, PullResult, pull
from annotate.push import push
from annotate.regions import class_map_regions
from annotate.standing import standing
from annotate.studio import Studio
from annotate.workspace import Workspace
from bench.proxy import Fault, faulty

pytestmark = pytest.mark.server
SIZE = (50, 70)


def truth(workspace: Workspace, seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A class map of rectangles, with unlabelled places."""
    random = np.random.default_rng(seed)
    ids = np.full(size, UNLABELLED, np.uint8)
    for one in workspace.settings().classes.ids:
        row, column = random.integers(0, size[0] - 12), random.integers(0, size[1] - 12)
        ids[row : row + random.integers(4, 20), column : column + random.integers(4, 20)] = one
    return ids


class Annotator:
    """A workspace with paintings on the server, and somebody who annotates there."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace = workspace
        self.project = push(workspace, folder, PushConfig(strategy="all")).project
        self.studio: Studio = connect(workspace)
        self.tasks = {task.key: task.id for task in self.studio.tasks(self.project)}

    def draw(self, key: str, ids: NDArray[np.uint8], form: Any = "brush", seconds: float = 0.0) -> int:
        regions = class_map_regions(ids, self.workspace.settings().classes, form)
        return self.studio.annotate(self.tasks[key], regions, seconds)

    def pull(self) -> PullResult:
        return pull(self.workspace, PullConfig())

    def mask(self, key: str) -> NDArray[np.uint8]:
        return read_mask(self.workspace.mask("hand", key), Encoding.RAW)


@pytest.fixture
def annotator(remote: Workspace, tmp_path: Path, paint: Painter) -> Annotator:
    for seed, name in enumerate(("a", "b", "sub/Été #3 'x'")):
        paint(tmp_path / "paintings" / f"{name}.png", SIZE, seed)
    return Annotator(remote, tmp_path / "paintings")


def test_what_was_drawn_comes_back_exactly(annotator: Annotator) -> None:
    drawn = {key: truth(annotator.workspace, seed) for seed, key in enumerate(annotator.tasks)}
    forms = dict(zip(annotator.tasks, ("brush", "polygon", "brush"), strict=True))
    for key, ids in drawn.items():
        annotator.draw(key, ids, forms[key])
    result = annotator.pull()
    assert set(result.outcomes.values()) == {Outcome.NEW}
    assert (result.twice, result.problems) == ((), ())
    for key, ids in drawn.items():
        if forms[key] == "brush":
            assert np.array_equal(annotator.mask(key), ids)
        else:  # polygons are simplified to within a pixel
            assert (annotator.mask(key) == ids).mean() > 0.97
    assert annotator.workspace.keys_with_mask("hand") == sorted(drawn)


def test_polygons_of_whole_pixels_come_back_exactly(annotator: Annotator) -> None:
    corners = [[10, 20], [60, 20], [60, 80], [10, 80]]  # percent: columns 7 to 42, rows 10 to 40
    common = {"id": "p", "to_name": "image", "original_width": 70, "original_height": 50, "image_rotation": 0}
    points = {"points": corners, "closed": True}
    shape = {**common, "from_name": "polygon", "type": "polygon", "value": points}
    label = {**common, "from_name": "label", "type": "labels", "value": {**points, "labels": ["trees"]}}
    annotator.studio.annotate(annotator.tasks["a"], [shape, label])
    annotator.pull()
    expected = np.full(SIZE, UNLABELLED, np.uint8)
    expected[10:40, 7:42] = 168
    assert np.array_equal(annotator.mask("a"), expected)


def test_only_what_changed_is_fetched(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "b"):
        annotator.draw(key, truth(annotator.workspace, 1))
    annotator.pull()
    fetched: list[int] = []
    original = Studio.result

    def counted(self: Studio, annotation: int) -> Any:
        fetched.append(annotation)
        return original(self, annotation)

    monkeypatch.setattr(Studio, "result", counted)
    before = annotator.workspace.mask("hand", "a").stat().st_mtime_ns
    assert annotator.pull().count(Outcome.UNCHANGED) == 2
    assert fetched == []
    assert annotator.workspace.mask("hand", "a").stat().st_mtime_ns == before
    second = truth(annotator.workspace, 2)
    changed = annotator.draw("a", second)
    annotator.workspace.mask("hand", "b").unlink()
    result = annotator.pull()
    assert result.outcomes["a"] is Outcome.CHANGED
    assert result.outcomes["b"] is Outcome.NEW
    assert len(fetched) == 2
    assert changed in fetched
    assert result.twice == ("a",)
    assert np.array_equal(annotator.mask("a"), second), "the latest counts"


def test_an_annotation_corrected_in_place_is_fetched_again(annotator: Annotator) -> None:
    number = annotator.draw("a", truth(annotator.workspace, 1))
    annotator.pull()
    after = truth(annotator.workspace, 2)
    regions = class_map_regions(after, annotator.workspace.settings().classes)
    annotator.studio.connection.send(
        "PATCH", f"api/annotations/{number}/", repeat=True, json={"result": regions}
    )
    assert annotator.pull().outcomes["a"] is Outcome.CHANGED
    assert np.array_equal(annotator.mask("a"), after)


def test_other_class_ids_make_other_masks(annotator: Annotator) -> None:
    annotator.draw("a", truth(annotator.workspace, 1))
    annotator.pull()
    file = annotator.workspace.settings_file
    file.write_text(file.read_text().replace("id = 168", "id = 169"))
    assert annotator.pull().outcomes["a"] is Outcome.CHANGED
    assert 169 in annotator.mask("a")
    assert 168 not in annotator.mask("a")


def test_a_mask_whose_annotation_went_is_kept_and_told(annotator: Annotator) -> None:
    drawn = {key: annotator.draw(key, truth(annotator.workspace, 1)) for key in annotator.tasks}
    assert annotator.pull().kept == ()
    one, two, three = annotator.tasks
    annotator.studio.connection.send("DELETE", f"api/annotations/{drawn[one]}/", repeat=True)
    skip = {"was_cancelled": True}
    annotator.studio.connection.send("PATCH", f"api/annotations/{drawn[two]}/", repeat=True, json=skip)
    annotator.studio.delete_task(annotator.tasks[three])
    result = annotator.pull()
    assert result.kept == (one, two, three)
    assert f"was deleted or skipped since: {one}, {two}, {three}; delete masks/hand" in result.text()
    assert np.array_equal(annotator.mask(one), truth(annotator.workspace, 1))
    annotator.workspace.mask("hand", two).unlink()
    assert annotator.pull().kept == (one, three)


def test_an_annotation_that_shows_nothing_is_told(annotator: Annotator) -> None:
    drawn = annotator.draw("a", truth(annotator.workspace, 1))
    annotator.pull()
    annotator.studio.connection.send("PATCH", f"api/annotations/{drawn}/", repeat=True, json={"result": []})
    assert annotator.pull().outcomes["a"] is Outcome.EMPTY
    assert (annotator.mask("a") == UNLABELLED).all()
    assert annotator.pull().outcomes["a"] is Outcome.UNCHANGED


def test_a_mask_retouched_by_hand_is_copied_before_the_annotation_takes_its_place(
    annotator: Annotator, capsys: pytest.CaptureFixture[str]
) -> None:
    annotator.draw("a", truth(annotator.workspace, 1))
    path = annotator.workspace.mask("hand", "a")
    mine = truth(annotator.workspace, 7)
    path.parent.mkdir(parents=True)
    Image.fromarray(mine).save(path)  # as an image editor leaves it: without our text chunks
    assert annotator.pull().outcomes["a"] is Outcome.CHANGED
    assert np.array_equal(annotator.mask("a"), truth(annotator.workspace, 1))
    (copy,) = (annotator.workspace.root / "masks" / "outdated").iterdir()
    assert np.array_equal(np.asarray(Image.open(copy)), mine)
    assert str(copy) in capsys.readouterr().err


def test_an_annotation_of_another_painting_makes_no_mask(
    annotator: Annotator, tmp_path: Path, paint: Painter
) -> None:
    """The list was lost, and with it that the file had changed since it was sent."""
    annotator.draw("a", truth(annotator.workspace, 1))
    paint(tmp_path / "paintings" / "a.png", SIZE, 99)
    annotator.workspace.index_file.unlink()
    assert len(push(annotator.workspace, tmp_path / "paintings", PushConfig(strategy="all")).problems) == 1
    result = annotator.pull()
    assert result.outcomes["a"] is Outcome.FAILED
    (line,) = result.problems
    assert f"task {annotator.tasks['a']}: annotates another painting than a is now" in line
    assert annotator.workspace.keys_with_mask("hand") == []
    assert standing(annotator.workspace).annotated == 0


def test_skipped_and_drafts_are_told_apart(annotator: Annotator) -> None:
    annotator.studio.annotate(annotator.tasks["a"], [], cancelled=True)
    regions = class_map_regions(truth(annotator.workspace, 1), annotator.workspace.settings().classes)
    draft = {"result": regions, "lead_time": 1.0}
    annotator.studio.connection.send(
        "POST", f"api/tasks/{annotator.tasks['b']}/drafts", repeat=False, json=draft
    )
    result = annotator.pull()
    assert result.outcomes == {"a": Outcome.SKIPPED, "b": Outcome.DRAFT, "sub/Été #3 'x'": Outcome.OPEN}
    assert annotator.workspace.keys_with_mask("hand") == []
    drawn = truth(annotator.workspace, 3)
    annotator.draw("a", drawn)
    annotator.studio.annotate(annotator.tasks["a"], [], cancelled=True)
    result = annotator.pull()
    assert result.outcomes["a"] is Outcome.NEW
    assert result.twice == ()
    assert np.array_equal(annotator.mask("a"), drawn), "a later Skip takes nothing away"


def test_one_bad_annotation_is_named_and_the_rest_goes_on(annotator: Annotator) -> None:
    good = truth(annotator.workspace, 1)
    annotator.draw("a", good)
    annotator.pull()
    regions = class_map_regions(good, annotator.workspace.settings().classes)
    for region in regions:
        for kind in ("labels", "brushlabels"):
            if kind in region["value"]:
                region["value"][kind] = ["submarine"]
    annotator.studio.annotate(annotator.tasks["a"], regions)
    damaged = class_map_regions(good, annotator.workspace.settings().classes)
    for region in damaged:
        region["value"]["rle"] = region["value"]["rle"][:9]
    annotator.studio.annotate(annotator.tasks["b"], damaged)
    annotator.draw("sub/Été #3 'x'", good)
    done = CliRunner().invoke(annotate, ["pull", "-w", str(annotator.workspace.root)])
    assert done.exit_code == 1
    assert "no class 'submarine' in tool.toml; add it there and pull again" in done.stderr
    assert f"a (task {annotator.tasks['a']}, annotation" in done.stderr
    assert f"b (task {annotator.tasks['b']}, annotation" in done.stderr
    assert "1 new, 1 unknown label, 1 failed" in done.stdout
    assert "  unknown label: a\n" in done.stdout
    assert np.array_equal(annotator.mask("a"), good), "the older mask stays"
    assert not annotator.workspace.mask("hand", "b").exists()
    assert np.array_equal(annotator.mask("sub/Été #3 'x'"), good)


@pytest.mark.parametrize("key", ["../../outside", "/tmp/outside", "a/../../b", "nobody knows", "\0"])
def test_a_key_from_the_server_writes_nowhere_else(annotator: Annotator, key: str) -> None:
    rows = [{"data": {"image": "/data/x.png", "key": key}}, {"data": {"image": "/data/x.png", "key": ["a"]}}]
    rows = (
        rows
        if key != "\0"
        else [{"data": {"image": "/data/x.png", "key": {"a": 1}}}, {"data": {"image": "y"}}]
    )
    annotator.studio.connection.send(
        "POST", f"api/projects/{annotator.project}/import", repeat=False, json=rows
    )
    strange = [task for task in annotator.studio.tasks(annotator.project) if task.key not in annotator.tasks]
    assert len(strange) == 2
    for task in strange:
        annotator.studio.annotate(
            task.id, class_map_regions(truth(annotator.workspace, 1), annotator.workspace.settings().classes)
        )
    drawn = truth(annotator.workspace, 5)
    annotator.draw("a", drawn)
    result = annotator.pull()
    named = [task for task in strange if task.key]
    assert len(result.problems) == len(named)
    assert all(f"task {task.id}: " in " ".join(result.problems) for task in named)
    assert annotator.workspace.keys_with_mask("hand") == ["a"]
    files = {path.name for path in annotator.workspace.root.parent.rglob("*") if path.is_file()}
    assert not any("outside" in name for name in files)


def test_a_server_that_goes_away_leaves_the_old_masks_and_the_next_pull_completes(
    annotator: Annotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    before = {key: truth(annotator.workspace, 1) for key in annotator.tasks}
    for key, ids in before.items():
        annotator.draw(key, ids)
    annotator.pull()
    after = {key: truth(annotator.workspace, seed) for seed, key in enumerate(annotator.tasks, 7)}
    for key, ids in after.items():
        annotator.draw(key, ids)
    fetched = 0
    gone = True

    def choose(number: int, method: str, path: str) -> Fault:
        nonlocal fetched
        fetched += "api/annotations/" in path
        return "drop" if gone and fetched > 1 else None

    with faulty(os.environ["LABEL_STUDIO_URL"], choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        annotator.workspace.save_settings(studio_url=url)
        with pytest.raises(UserError, match="does not answer"):
            annotator.pull()
        for key in before:
            now = annotator.mask(key)
            assert np.array_equal(now, before[key]) or np.array_equal(now, after[key])
        assert sum(not np.array_equal(annotator.mask(key), before[key]) for key in before) <= 1
        gone = False
        assert annotator.pull().problems == ()
        for key, ids in after.items():
            assert np.array_equal(annotator.mask(key), ids)


def test_status_counts_what_a_person_wants_to_know(annotator: Annotator) -> None:
    ids = np.full(SIZE, 156, np.uint8)
    ids[40:, :35] = 148
    ids[:5] = UNLABELLED
    annotator.draw("a", ids, seconds=60)
    annotator.draw("b", ids, seconds=120)
    annotator.draw("b", ids, seconds=180)
    annotator.pull()
    found = standing(annotator.workspace)
    assert (found.chosen, found.pulled, found.annotated, found.left) == (3, 2, 2, 1)
    assert (found.skipped, found.drafts, found.twice) == (0, 0, ("b",))
    assert found.minutes_left == pytest.approx(2.0)  # one painting, the median of 60 and 180 s
    counts = {one.name: (one.paintings, one.pixels) for one in found.classes}
    assert counts["road"] == (2, 2 * 10 * 35)
    assert counts["sky"] == (2, 2 * (45 * 70 - 350))
    assert found.unseen == ("water", "trees", "buildings", "street light")
    assert (found.review, found.agreement) == (0, None)
    assert found.unlabelled == pytest.approx(0.1)
    done = CliRunner().invoke(annotate, ["status", "-w", str(annotator.workspace.root)])
    assert "2 of 3 annotated, 1 left (0 begun, 0 skipped); about 2 min more" in done.stdout
    assert "annotated more than once: b" in done.stdout
    assert "no annotated painting shows: water, trees, buildings, street light" in done.stdout
    shown = json.loads(
        CliRunner().invoke(annotate, ["status", "--json", "-w", str(annotator.workspace.root)]).stdout
    )
    assert shown["classes"][0] == {
        "name": "road",
        "paintings": 2,
        "pixels": 700,
        "share": pytest.approx(700 / 6300),
    }


def test_every_one_of_many_tasks_gets_its_own_mask(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    for seed in range(20):
        paint(tmp_path / "paintings" / f"{seed}.png", SIZE, seed)
    annotator = Annotator(remote, tmp_path / "paintings")
    for seed in range(20):
        annotator.draw(str(seed), truth(remote, seed))
    assert annotator.pull().count(Outcome.NEW) == 20
    for seed in range(20):
        assert np.array_equal(annotator.mask(str(seed)), truth(remote, seed))
