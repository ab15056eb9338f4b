"""`tool segment`, run as a user runs it: the four commands in turn, their reports, and their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from segment_toys import QUICK, toy_workspace

from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, write_mask
from annotate.paintings import read_index, write_index
from annotate.workspace import Workspace
from cli import main
from segment.config import TrainConfig
from segment.label import current_labels
from segment.model import WEIGHTS, saved_config

OPTIONS = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def run(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(main, ["segment", *words, "-w", str(workspace.root)])


def run_json(workspace: Workspace, *words: str) -> dict[str, Any]:
    done = run(workspace, *words, "--json")
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = toy_workspace(tmp_path_factory.mktemp("flow"))
    assert run_json(workspace, "train", *OPTIONS)["trained"] is True
    assert run_json(workspace, "pseudo-label")["labelled"] == 2
    assert run_json(workspace, "convert")["written"] == 5
    return workspace


def test_the_flow_leaves_its_figures(flow: Workspace) -> None:
    for name in ("segment-train", "segment-pseudo-label", "segment-convert"):
        assert flow.report(name)
    assert isinstance((flow.report("segment-pseudo-label") or {})["mean_confidence"], float)


def test_run_again_it_repeats_nothing(flow: Workspace) -> None:
    before = flow.report("segment-train")
    assert "up to date" in run(flow, "train", *OPTIONS).stdout
    assert flow.report("segment-train") == before
    assert "0 labelled now, 2 there" in run(flow, "pseudo-label").stdout
    assert "0 written, 5 unchanged" in run(flow, "convert").stdout


def test_evaluate_against_truth(flow: Workspace) -> None:
    found = run_json(flow, "evaluate", "--truth", str(flow.root / "truth"))
    assert (found["method"], found["paintings"]) == ("truth", 2)
    assert flow.report("segment-evaluate") == found
    truth = [read_mask(flow.root / "truth" / "set" / f"p{n}.png", Encoding.RAW) for n in (3, 4)]
    said = [read_mask(flow.mask("pseudo", f"set/p{n}"), Encoding.RAW) for n in (3, 4)]
    right = sum(int(((a == b) & (a != 255)).sum()) for a, b in zip(truth, said, strict=True))
    assert found["pixel_accuracy"] == pytest.approx(right / sum(int((a != 255).sum()) for a in truth))


def test_cross_validation_counts_each_mask_once_and_keeps_finished_folds(flow: Workspace) -> None:
    found = run_json(flow, "evaluate", "--folds", "3")
    assert (found["method"], found["paintings"]) == ("folds", 3)
    labelled = sum(
        int((read_mask(flow.mask("hand", key), Encoding.RAW) != 255).sum())
        for key in flow.keys_with_mask("hand")
    )
    assert sum(one["pixels"] for one in found["classes"]) == labelled
    again = run(flow, "evaluate", "--folds", "3")
    assert "Fold" not in again.stderr
    assert "cross-validated on 3 paintings" in again.stdout
    assert found["estimate"]["paintings"] == 2
    assert found["estimate"]["miou"]["low"] <= found["estimate"]["miou"]["high"]
    assert sorted(found["ranking"]) == ["set/p3", "set/p4"]
    assert list(found["thresholds"]) == [one["name"] for one in found["classes"]]
    assert "expected of the 2 pseudo-labelled paintings: mIoU" in again.stdout
    (flow.model("deeplab") / "folds" / "1.npz").write_bytes(b"PK damaged")
    assert "Fold 2 of 3" in run(flow, "evaluate", "--folds", "3").stderr
    too_many = run(flow, "evaluate", "--folds", "4")
    assert too_many.exit_code == 1
    assert "3 usable masks are too few for 4 folds; use --folds 3" in too_many.stderr


def test_a_fold_is_trained_by_one_process(
    flow: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever machines the model was trained on: the other ones of them are not here."""
    workspace = Workspace(tmp_path / "other")
    shutil.copytree(flow.root, workspace.root)
    shutil.rmtree(workspace.model("deeplab") / "folds", ignore_errors=True)
    path = workspace.model("deeplab") / WEIGHTS
    config = saved_config(workspace) or {}
    config["train"] |= {"devices": 2, "nodes": 1}
    save_file(load_file(path), path, metadata={"config": json.dumps(config)})
    asked = []

    def trained(learn: Any, check: Any, classes: Any, config: TrainConfig, *args: Any) -> Any:
        asked.append(config.processes)
        raise UserError("enough")

    monkeypatch.setattr("segment.folds.fit", trained)
    assert run(workspace, "evaluate", "--folds", "2").exit_code == 1
    assert asked == [1]
    config["train"]["init"] = str(tmp_path / "gone.pth")
    save_file(load_file(path), path, metadata={"config": json.dumps(config)})
    assert (
        "gone.pth: the weights that the model began with are not there" in run(workspace, "evaluate").stderr
    )


def test_true_masks_that_cannot_be_compared(flow: Workspace, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    path = truth / "set" / "p3.png"
    write_mask(path, np.full((7, 5), 148, np.uint8), Encoding.RAW)
    wrong = run(flow, "evaluate", "--truth", str(truth))
    assert "p3.png: the true mask is 7 x 5, its painting 43 x 56" in wrong.stderr
    write_mask(path, np.full((43, 56), 255, np.uint8), Encoding.RAW)
    empty = run(flow, "evaluate", "--truth", str(truth))
    assert empty.exit_code == 1
    assert "no pixel of its masks is labelled" in empty.stderr


def test_masks_of_paintings_that_are_gone_do_not_count(flow: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "other")
    shutil.copytree(flow.root, workspace.root)
    write_index(workspace, [one for key, one in read_index(workspace).items() if key != "set/p4"])
    assert current_labels(workspace)[0] == ["set/p3"]
    assert run_json(workspace, "evaluate", "--truth", str(workspace.root / "truth"))["paintings"] == 1


def test_settings_of_another_version(flow: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "other")
    shutil.copytree(flow.root, workspace.root)
    path = workspace.model("deeplab") / WEIGHTS
    config = saved_config(workspace) or {}
    config["train"]["unheard"] = 1
    save_file(load_file(path), path, metadata={"config": json.dumps(config)})
    done = run(workspace, "evaluate")
    assert done.exit_code == 1
    assert "trained by another version, whose settings this one does not know" in done.stderr
    assert done.stderr.count("\n") == 1


def test_errors_are_one_line(flow: Workspace, tmp_path: Path) -> None:
    empty = Workspace(tmp_path / "empty")
    for words in (
        ("train", "--init", "none"),
        ("pseudo-label",),
        ("convert",),
        ("evaluate", "--truth", str(tmp_path / "absent")),
    ):
        done = run(empty, *words)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stdout == ""
    assert run(flow, "pseudo-label", "--scales", "none").exit_code == 2
    assert run(flow, "train", "--seed", "-1").exit_code == 2
    few = run(flow, "train", "--steps", "3", "--rounds", "3")
    assert few.exit_code == 2
    assert "use --steps 4" in few.stderr
    (tmp_path / "truth").mkdir()
    assert "belongs to a pseudo mask" in run(flow, "evaluate", "--truth", str(tmp_path / "truth")).stderr


def test_a_left_out_mask_shows_in_the_exit_code(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    write_mask(workspace.mask("hand", "set/p0"), np.zeros((9, 9), np.uint8), Encoding.RAW)
    done = run(workspace, "convert")
    assert done.exit_code == 1
    assert "left out: " in done.stderr
    assert workspace.keys_with_mask("shifted") == ["set/p1", "set/p2"]
