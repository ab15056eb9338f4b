"""Pseudo masks as pre-annotations of a real Label Studio: shown, corrected, replaced, and nothing else touched."""

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
from skimage.morphology import isotropic_dilation

from annotate import connection
from annotate.access import connect
from annotate.classes import UNLABELLED
from annotate.commands import annotate
from annotate.config import PullConfig, PushConfig
from annotate.errors import UserError
from annotate.masks import MEAN_CONFIDENCE, Encoding, mask_digest, read_mask, write_mask
from annotate.predictions import AttachResult, confidence
from annotate.pull import pull
from annotate.push import PushResult, push
from annotate.regions import class_map
from annotate.studio import MODEL, Studio
from annotate.workspace import Workspace
from bench.proxy import Fault, faulty

pytestmark = pytest.mark.server
SIZE = (60, 84)
KEYS = ("a", "b", "sub/Été #3 'x'")


def guess(workspace: Workspace, key: str, seed: int, sure: float = 0.75) -> NDArray[np.uint8]:
    """Write a pseudo mask of smooth shapes, with a hole and an unlabelled corner."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ids = np.full(SIZE, 156, np.uint8)
    ids[rows > 30 + 6 * np.sin(columns / 9 + seed)] = 148
    ids[(rows - 25) ** 2 + (columns - 30 - seed) ** 2 < 300] = 168
    ids[(rows - 25) ** 2 + (columns - 30 - seed) ** 2 < 40] = 95
    ids[:8, :8] = UNLABELLED
    about = {MEAN_CONFIDENCE: f"{sure:.6f}"}
    write_mask(workspace.mask("pseudo", key), ids, Encoding.RAW, about)
    return ids


@pytest.fixture
def folder(tmp_path: Path, paint: Painter) -> Path:
    for seed, key in enumerate(KEYS):
        paint(tmp_path / "paintings" / f"{key}.png", SIZE, seed)
    return tmp_path / "paintings"


def send(workspace: Workspace, folder: Path, **settings: Any) -> PushResult:
    return push(workspace, folder, PushConfig(strategy="all", predictions=True, **settings))


def attached(result: PushResult) -> tuple[int, int, int]:
    assert result.predictions is not None
    return result.predictions.attached, result.predictions.there, result.predictions.without


@pytest.fixture
def studio(remote: Workspace) -> Any:
    found = connect(remote)
    yield found
    found.close()


def stored(studio: Studio, task: int) -> list[dict[str, Any]]:
    """The predictions of one task, with what they show."""
    found = studio.connection.get("api/predictions/", {"task": task})
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("form", ["brush", "polygon"])
def test_a_pre_annotation_shows_the_pseudo_mask(
    remote: Workspace, folder: Path, studio: Studio, form: str
) -> None:
    from label_studio_sdk.label_interface.interface import LabelInterface

    guesses = {key: guess(remote, key, seed) for seed, key in enumerate(KEYS[:2])}
    result = send(remote, folder, regions=form)
    assert attached(result) == (2, 0, 1)
    classes = remote.settings().classes
    interface = LabelInterface(studio.connection.get(f"api/projects/{result.project}/")["label_config"])
    tasks = {task.key: task.id for task in studio.tasks(result.project)}
    for key, ids in guesses.items():
        (found,) = stored(studio, tasks[key])
        assert (found["model_version"], round(found["score"], 4)) == (MODEL, 0.75)
        assert interface.validate_prediction(found, return_errors=True) == []
        shown = class_map(found["result"], SIZE, classes).ids
        if form == "brush":
            assert np.array_equal(shown, ids)
        else:
            assert near(ids, shown)
            assert near(shown, ids)
    assert stored(studio, tasks[KEYS[2]]) == []


def near(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether every pixel of `one` has its class in `other` within 2 pixels, from centre to centre.

    An outline within a pixel of the true edge allows no more.
    """
    return not any((~isotropic_dilation(other == here, 2) & (one == here)).any() for here in np.unique(one))


def test_a_second_push_attaches_nothing_and_other_masks_replace(
    remote: Workspace, folder: Path, studio: Studio
) -> None:
    for seed, key in enumerate(KEYS):
        guess(remote, key, seed)
    project = send(remote, folder, regions="brush").project
    before = {task.key: task.predictions for task in studio.tasks(project)}
    assert attached(send(remote, folder, regions="brush")) == (0, 3, 0)
    assert {task.key: task.predictions for task in studio.tasks(project)} == before
    after = guess(remote, "b", 9)  # of the same mean confidence
    assert attached(send(remote, folder, regions="brush")) == (1, 2, 0)
    found = {task.key: task for task in studio.tasks(project)}
    assert found["a"].predictions == before["a"]
    (one,) = stored(studio, found["b"].id)
    assert np.array_equal(class_map(one["result"], SIZE, remote.settings().classes).ids, after)
    assert attached(send(remote, folder, regions="polygon")) == (3, 0, 0)
    assert all(len(task.predictions) == 1 for task in studio.tasks(project))
    assert attached(send(remote, folder, regions="polygon")) == (0, 3, 0)


def test_predictions_of_others_annotations_and_drafts_stay(
    remote: Workspace, folder: Path, studio: Studio
) -> None:
    for seed, key in enumerate(KEYS):
        guess(remote, key, seed)
    project = send(remote, folder).project
    tasks = {task.key: task for task in studio.tasks(project)}
    theirs = {"task": tasks["a"].id, "result": [], "score": 0.5, "model_version": "somebody"}
    studio.connection.send("POST", "api/predictions/", repeat=False, json=theirs)
    number = studio.annotate(tasks["b"].id, [])
    studio.connection.send("POST", f"api/tasks/{tasks[KEYS[2]].id}/drafts", repeat=False, json={"result": []})
    for seed, key in enumerate(KEYS, 5):
        guess(remote, key, seed)
    assert attached(send(remote, folder)) == (1, 0, 0)
    after = {task.key: task for task in studio.tasks(project)}
    assert {one.model for one in after["a"].predictions} == {"somebody", MODEL}
    assert len(after["a"].predictions) == 2
    assert [one.id for one in after["b"].annotations] == [number]
    assert after["b"].predictions == tasks["b"].predictions
    assert after[KEYS[2]].predictions == tasks[KEYS[2]].predictions
    assert after[KEYS[2]].drafts == 1


def test_paintings_can_be_ordered_by_how_sure_the_model_is(
    remote: Workspace, folder: Path, studio: Studio
) -> None:
    for key, sure in zip(KEYS, (0.9, 0.2, 0.6), strict=True):
        guess(remote, key, 1, sure)
    project = send(remote, folder).project
    about = studio.connection.get(f"api/projects/{project}/")
    assert (about["model_version"], about["show_collab_predictions"]) == (MODEL, True)
    query = json.dumps({"ordering": ["tasks:predictions_score"]})
    answer = studio.connection.get("api/tasks/", {"project": project, "query": query})
    assert [row["data"]["key"] for row in answer["tasks"]] == ["b", KEYS[2], "a"]
    # the editor asks for a task together with what it shall show first
    row = studio.connection.get(f"api/tasks/{answer['tasks'][0]['id']}/", {"project": project})
    assert len(row["predictions"]) == 1


def test_a_mask_that_does_not_fit_is_one_line(remote: Workspace, folder: Path, studio: Studio) -> None:
    guess(remote, "a", 1)
    guess(remote, "b", 1)
    write_mask(remote.mask("pseudo", "a"), np.zeros((5, 7), np.uint8), Encoding.RAW)
    remote.mask("pseudo", KEYS[2]).parent.mkdir(parents=True)
    remote.mask("pseudo", KEYS[2]).write_bytes(b"no mask")
    done = CliRunner().invoke(
        annotate, ["push", str(folder), "--strategy", "all", "--predictions", "-w", str(remote.root)]
    )
    assert done.exit_code == 1
    assert "pre-annotations: 1 attached now, 0 there\n" in done.stdout
    assert (
        "a.png: the mask is 5 x 7, its painting 60 x 84; run `tool segment pseudo-label` again" in done.stderr
    )
    assert "error: 2 left out" in done.stderr
    project = remote.settings().studio_project
    assert studio.connection.get(f"api/projects/{project}/")["model_version"] == MODEL, (
        "the good one is shown"
    )


def test_a_server_that_drops_some_is_an_error(
    remote: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess(remote, "a", 1)
    original = Studio.predict

    def spoiled(self: Studio, project: int, guesses: Any) -> None:
        send_ = self.connection.send
        monkeypatch.setattr(self.connection, "send", lambda *a, **k: send_(*a, **k) | {"created": 0})
        original(self, project, guesses)

    monkeypatch.setattr(Studio, "predict", spoiled)
    with pytest.raises(UserError, match="took 0 of 1 pre-annotations; run the command again"):
        send(remote, folder)


@pytest.mark.parametrize("fault", ["deaf", "drop", 502])
def test_a_broken_connection_leaves_one_pre_annotation_each(
    remote: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    for seed, key in enumerate(KEYS):
        guess(remote, key, seed)
    send(remote, folder)
    for seed, key in enumerate(KEYS, 4):
        guess(remote, key, seed)
    spoiled = []

    def choose(number: int, method: str, path: str) -> Fault:
        step = next((one for one in ("import/predictions", "dm/actions") if one in path), None)
        if step is None or step in spoiled:
            return None
        spoiled.append(step)
        return fault

    with faulty(os.environ["LABEL_STUDIO_URL"], choose) as url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        remote.save_settings(studio_url=url)
        assert attached(send(remote, folder)) == (3, 0, 0)
        assert sorted(spoiled) == ["dm/actions", "import/predictions"]
        assert attached(send(remote, folder)) == (0, 3, 0)
        studio = connect(remote)
        assert [len(task.predictions) for task in studio.tasks(studio.project(remote))] == [1, 1, 1]
        studio.close()


@pytest.mark.parametrize("form", ["brush", "polygon"])
def test_scaled_for_the_server_a_submitted_pre_annotation_has_the_paintings_size(
    remote: Workspace, folder: Path, studio: Studio, form: str
) -> None:
    ids = guess(remote, "a", 1)
    project = send(remote, folder, max_side=42, regions=form).project
    task = next(task for task in studio.tasks(project) if task.key == "a")
    assert task.size == (30, 42)
    (found,) = stored(studio, task.id)
    assert {(one["original_height"], one["original_width"]) for one in found["result"]} == {(30, 42)}
    studio.annotate(task.id, found["result"])
    assert pull(remote, PullConfig()).problems == ()
    mask = read_mask(remote.mask("hand", "a"), Encoding.RAW)
    assert mask.shape == SIZE
    assert (mask == ids).mean() > 0.93
    # what differs lies within a pixel of what the browser showed, which is two here
    padded = np.pad(ids, 3, mode="edge")
    moved = [padded[r : r + 60, c : c + 84] == mask for r in range(7) for c in range(7)]
    assert np.any(moved, axis=0).mean() > 0.999


def test_how_sure_is_read_from_the_map_where_the_mask_does_not_say(tmp_path: Path) -> None:
    from PIL import Image, PngImagePlugin

    workspace = Workspace(tmp_path)
    write_mask(workspace.mask("pseudo", "a"), np.zeros((4, 6), np.uint8), Encoding.RAW)
    assert confidence(workspace, "a") is None
    workspace.mask("confidence", "a").parent.mkdir(parents=True)
    info = PngImagePlugin.PngInfo()
    info.add_text("encoding", "confidence")
    Image.fromarray(np.full((4, 6), 51, np.uint8)).save(workspace.mask("confidence", "a"), pnginfo=info)
    assert confidence(workspace, "a") == pytest.approx(0.2)
    Image.fromarray(np.full((4, 6), 51, np.uint8)).save(workspace.mask("confidence", "a"))
    with pytest.raises(UserError, match="not a confidence map"):
        confidence(workspace, "a")


def test_a_digest_is_of_what_a_mask_shows(tmp_path: Path) -> None:
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for name, about in (("a", {}), ("b", {"annotation": "7"}), ("c", {})):
        write_mask(tmp_path / f"{name}.png", ids + (name == "c"), Encoding.RAW, about)
    a, b, c = (mask_digest(tmp_path / f"{name}.png") for name in "abc")
    assert a == b
    assert a != c
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    for bad in ("cut.png", "absent.png"):
        with pytest.raises(UserError):
            mask_digest(tmp_path / bad)


def test_the_line_says_what_there_is() -> None:
    assert AttachResult(2, 1, 0, ()).text() == "pre-annotations: 2 attached now, 1 there"
    assert AttachResult(0, 0, 3, ()).text().endswith("0 there, 3 tasks without a pseudo mask")
