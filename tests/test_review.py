"""Review against a real Label Studio: the least sure first, pre-annotated, and corrected ones become hand masks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Painter
from numpy.typing import NDArray

from annotate.access import connect
from annotate.classes import UNLABELLED
from annotate.commands import annotate
from annotate.config import PullConfig, PushConfig, ReviewConfig
from annotate.errors import UserError
from annotate.masks import MEAN_CONFIDENCE, Encoding, read_mask, write_mask
from annotate.paintings import read_index, scan, write_index
from annotate.pull import Outcome, pull
from annotate.push import push
from annotate.regions import class_map_regions
from annotate.review import least_sure, queue_scores, review
from annotate.standing import standing
from annotate.studio import Studio
from annotate.workspace import Workspace
from segment.data import load_samples

SIZE = (50, 70)
SURE = {"0": 0.9, "1": 0.3, "2": 0.7, "3": 0.5, "4": 0.95, "5": 0.6}


def halves(seed: int) -> NDArray[np.uint8]:
    ids = np.full(SIZE, 156, np.uint8)
    ids[20 + seed :] = 148
    ids[:4, :6] = UNLABELLED
    return ids


@pytest.fixture
def ready(remote: Workspace, tmp_path: Path, paint: Painter) -> Workspace:
    """Eight paintings, two of them to annotate by hand (left open), six labelled by a model."""
    for seed in range(8):
        paint(tmp_path / "paintings" / f"{seed}.png", SIZE, seed)
    keys = tmp_path / "keys.txt"
    keys.write_text("6\n7\n")
    push(remote, tmp_path / "paintings", PushConfig(keys=keys))
    for key, sure in SURE.items():
        about = {MEAN_CONFIDENCE: f"{sure:.6f}"}
        write_mask(remote.mask("pseudo", key), halves(int(key)), Encoding.RAW, about)
    return remote


@pytest.fixture
def studio(ready: Workspace) -> Iterator[Studio]:
    found = connect(ready)
    yield found
    found.close()


def next_key(studio: Studio, project: int) -> Any:
    """The painting that Label Studio gives the next annotator, and the pre-annotations that come with it."""
    task = studio.connection.get(f"api/projects/{project}/next/")
    return task["data"]["key"], task["predictions"]


@pytest.mark.server
def test_the_least_sure_come_first_and_corrected_ones_are_trained_on(
    ready: Workspace, studio: Studio
) -> None:
    result = review(ready, ReviewConfig(count=3))
    assert (result.keys, result.sure) == (("1", "3", "5"), (0.3, 0.5, 0.6))
    assert (result.added, result.there, result.problems) == (3, 0, ())
    assert (result.predictions.attached, result.predictions.there) == (3, 0)
    again = review(ready, ReviewConfig(count=3))
    assert (again.keys, again.added, again.there) == (("1", "3", "5"), 0, 3)
    assert (again.predictions.attached, again.predictions.there, again.url) == (0, 3, result.url)
    splits = {key: one.split for key, one in read_index(ready).items()}
    assert [key for key, split in splits.items() if split == "hand"] == ["6", "7"], (
        "not before it is corrected"
    )
    tab = int(result.url.rsplit("=", 1)[1])
    rows = studio.connection.get("api/tasks/", {"view": tab})["tasks"]
    assert [row["data"]["key"] for row in rows] == ["1", "3", "5"]

    tasks = {task.key: task.id for task in studio.tasks(result.project)}
    corrected = halves(9)
    for key in result.keys[:2]:
        found, predictions = next_key(studio, result.project)
        assert found == key
        assert len(predictions) == 1
        studio.annotate(tasks[key], class_map_regions(corrected, ready.settings().classes), seconds=30)
    shown = standing(ready)
    assert (shown.chosen, shown.annotated, shown.left, shown.review) == (5, 2, 3, 1)
    assert shown.minutes_left == pytest.approx(1.5)
    pulled = pull(ready, PullConfig())
    assert pulled.count(Outcome.NEW) == 2
    assert np.array_equal(read_mask(ready.mask("hand", "1"), Encoding.RAW), corrected)
    splits = {key: one.split for key, one in read_index(ready).items()}
    assert [key for key, split in splits.items() if split == "hand"] == ["1", "3", "6", "7"]
    samples = load_samples(ready, ready.settings().classes, 50)
    assert [sample.key for sample in samples] == ["1", "3"]

    later = review(ready, ReviewConfig(count=3))
    assert (later.keys, later.added, later.there) == (("5", "2", "0"), 2, 1)
    assert next_key(studio, result.project)[0] == "5"


@pytest.mark.server
def test_a_ranking_that_a_step_left_comes_before_confidence(ready: Workspace, studio: Studio) -> None:
    ready.save_report("segment-evaluate", {"miou": 0.5, "ranking": ["4", "gone", "0", "6"]})
    assert least_sure(ready, read_index(ready)) == ["4", "0", "1", "3", "5", "2"]
    result = review(ready, ReviewConfig(count=3, regions="polygon"))
    assert result.keys == ("4", "0", "1")
    for key in result.keys:  # though the model is surer of the first than of the last
        found, _ = next_key(studio, result.project)
        assert found == key
        task = next(one for one in studio.tasks(result.project) if one.key == key)
        studio.annotate(task.id, [])
    for strange in ({"ranking": None}, {"ranking": [1, {}]}, {"ranking": "abc"}, {}):
        ready.save_report("segment-evaluate", strange)
        assert least_sure(ready, read_index(ready))[0] == "1"


@pytest.mark.server
def test_skipped_ones_are_not_asked_again_and_drafts_stay(ready: Workspace, studio: Studio) -> None:
    result = review(ready, ReviewConfig(count=2))
    tasks = {task.key: task.id for task in studio.tasks(result.project)}
    studio.annotate(tasks["1"], [], cancelled=True)
    studio.connection.send("POST", f"api/tasks/{tasks['3']}/drafts", repeat=False, json={"result": []})
    again = review(ready, ReviewConfig(count=2))
    assert (again.keys, again.added, again.there) == (("3", "5"), 1, 1)
    assert (again.predictions.attached, again.predictions.there) == (1, 0)


@pytest.mark.server
def test_a_painting_that_changed_or_went_is_one_line(
    ready: Workspace, tmp_path: Path, paint: Painter
) -> None:
    paint(tmp_path / "paintings" / "1.png", SIZE, 99)
    (tmp_path / "paintings" / "3.png").unlink()
    done = CliRunner().invoke(annotate, ["review", "--count", "3", "-w", str(ready.root)])
    assert done.exit_code == 1
    assert "3 paintings to review: 1 sent now, 0 there" in done.stdout
    assert "  1  30% sure\n" in done.stdout
    assert "1.png: changed since it was pushed" in done.stderr
    assert "3.png: cannot be read (No such file or directory)" in done.stderr
    shown = json.loads(
        CliRunner().invoke(annotate, ["review", "--count", "1", "--json", "-w", str(ready.root)]).stdout
    )
    assert shown["keys"] == ["1"]
    assert "login" not in shown


@pytest.mark.server
def test_a_push_after_a_review_keeps_both(ready: Workspace, tmp_path: Path) -> None:
    review(ready, ReviewConfig(count=2))
    result = push(ready, tmp_path / "paintings", PushConfig(fraction=0.25, predictions=True))
    assert (result.chosen, result.added) == (2, 0)
    assert result.predictions is not None
    assert result.predictions.without == 2, "those that are annotated by hand have no pseudo mask"
    assert [key for key, one in read_index(ready).items() if one.split == "hand"] == ["6", "7"]


def test_nothing_to_review_is_one_line(tmp_path: Path, paint: Painter) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(UserError, match="no paintings yet"):
        review(workspace, ReviewConfig())
    workspace.index_file.write_text("")
    with pytest.raises(UserError, match="no pseudo masks to review; run `tool segment pseudo-label` first"):
        review(workspace, ReviewConfig())


def test_where_all_is_corrected_the_line_says_so(tmp_path: Path, paint: Painter) -> None:
    workspace = Workspace(tmp_path / "w")
    paint(tmp_path / "paintings" / "a.png")
    write_index(workspace, scan(tmp_path / "paintings", workspace).paintings)
    for kind in ("pseudo", "hand"):
        write_mask(workspace.mask(kind, "a"), np.zeros((50, 70), np.uint8), Encoding.RAW)
    with pytest.raises(
        UserError, match="nothing to review, all that have a mask there are annotated by hand"
    ):
        review(workspace, ReviewConfig())


def test_scores_keep_the_order_that_was_given() -> None:
    assert queue_scores({"a": 0.2, "b": 0.6}) == {"a": 0.2, "b": 0.6}
    given = {"a": 0.9, "b": None, "c": 0.5, "d": 0.5}
    found = queue_scores(given)
    assert list(found) == list(given)
    values = list(found.values())
    assert values == sorted(values)
    assert min(b - a for a, b in itertools.pairwise(values)) > 9e-5
