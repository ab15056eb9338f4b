"""The demo's flow: the stand-in annotator does not cheat, and a killed demo carries on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from annotate.classes import ClassTable
from annotate.config import PullConfig, PushConfig
from annotate.errors import UserError
from annotate.interface import as_drawn
from annotate.masks import Encoding, read_mask, shift, write_mask
from annotate.pull import Outcome, pull
from annotate.push import push
from annotate.regions import class_map
from annotate.workspace import Workspace
from cli import main
from demo import flow
from demo.annotator import draw, stand_in
from demo.flow import _Clock, compositions
from demo.painter import paint, paint_folder
from generate import presets


def agreement(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> dict[int, float]:
    """IoU of every class that the truth shows."""
    kinds = np.unique(truth).tolist()
    return {
        k: float(((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum()) for k in kinds
    }


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_stand_in_draws_brush_strokes_and_polygons_that_show_the_scene(seed: int) -> None:
    truth = paint(seed, (96, 130)).ids
    regions = draw(truth, ClassTable())
    kinds = {one["type"] for one in regions}
    assert kinds == {"brushlabels", "polygonlabels"}
    found = class_map(as_drawn(regions), (96, 130), ClassTable())
    assert not found.unknown
    assert not found.problems
    assert min(agreement(found.ids, truth).values()) > 0.9
    assert (found.ids == truth).mean() > 0.985


@pytest.mark.server
def test_the_stand_in_annotates_each_task_once_and_pull_brings_it_back(remote: Workspace) -> None:
    folder, truth = remote.root / "paintings", remote.root / "truth"
    paint_folder(folder, truth, 3, seed=20)
    push(remote, folder, PushConfig(strategy="all"))
    first = stand_in(remote, truth)
    assert first.annotated == 3
    assert first.brush_regions >= 6  # trees and sky, on each
    assert first.polygon_regions >= 6
    assert stand_in(remote, truth).annotated == 0
    result = pull(remote, PullConfig())
    assert result.count(Outcome.NEW) == 3
    assert not result.twice
    for key in remote.keys_with_mask("hand"):
        found = read_mask(remote.mask("hand", key), Encoding.RAW)
        expected = read_mask(truth / f"{key}.png", Encoding.RAW)
        assert (found == expected).mean() > 0.985


def test_a_step_that_was_cut_off_counts_with_both_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def take(seconds: float, fail: bool = False) -> Mapping[str, Any]:
        now[0] += seconds
        if fail:
            raise KeyboardInterrupt
        return {"loss": seconds}

    workspace = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _Clock(workspace).run("segment-train", lambda: take(30, fail=True))
    assert workspace.report("segment-train") is None
    _Clock(workspace).run("segment-train", lambda: take(12))
    assert _Clock(workspace).seconds() == {"segment-train": 42.0}
    later = _Clock(workspace)
    later.run("segment-train", lambda: take(1) and None)  # up to date: a look adds nothing
    assert later.seconds() == {"segment-train": 42.0}
    assert workspace.report("segment-train") == {"loss": 12}


def test_compositions_are_two_held_out_masks_and_two_that_nobody_painted(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    sizes = {"a": (40, 50), "b": (44, 60), "c": (40, 52)}
    for number, (key, size) in enumerate(sizes.items()):
        ids = shift(paint(number, size).ids)
        write_mask(workspace.mask("shifted", key), ids, Encoding.SHIFTED)
    (workspace.masks("shifted") / "val.txt").write_text("b.png\nc.png\n")
    first, second, enlarged, mixed = compositions(workspace)
    assert (first, second) == ("b", "c")
    wide = read_mask(Path(enlarged), Encoding.RAW)
    assert wide.shape == (55, 75)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (44, 60))
    assert (windows == paint(1, (44, 60)).ids).all((2, 3)).any()  # all objects keep their size
    halves = read_mask(Path(mixed), Encoding.RAW)
    assert set(np.unique(halves)) <= set(np.unique(paint(1, (44, 60)).ids)) | set(
        np.unique(paint(2, (40, 52)).ids)
    )


def test_more_annotated_than_painted_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", str(tmp_path / "x"), "--annotated", "50"])
    assert result.exit_code == 2
    assert "--annotated 50" in result.stderr
    assert not (tmp_path / "x").exists()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training cut to a few steps of tiny models: real code, in seconds."""
    monkeypatch.setattr(
        flow, "DEEPLAB", {"init": "none", "steps": 2, "batch": 2, "crop": 64, "smallest_side": 0}
    )
    codes: dict[str, Any] = {"steps": 4, "batch": 2, "crop": 32, "start_codebook": 2, "save_every": 2}
    monkeypatch.setitem(presets.PAINTING_CODES, "small", replace(presets.PAINTING_CODES["small"], **codes))
    monkeypatch.setitem(presets.MASK_CODES, "small", replace(presets.MASK_CODES["small"], **codes))
    small: dict[str, Any] = {
        "steps": 2,
        "batch": 2,
        "layers": 1,
        "width": 32,
        "heads": 2,
        "views": 1,
        "save_every": 1,
        "warmup": 1,
    }
    monkeypatch.setitem(presets.TRANSFORMER, "small", replace(presets.TRANSFORMER["small"], **small))


@pytest.mark.server
@pytest.mark.slow
def test_the_whole_flow_twice(remote: Workspace, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["demo", str(remote.root), "--paintings", "8", "--annotated", "3", "--samples", "1", "--json"]

    def fail(*args: Any) -> None:
        raise UserError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(flow, "_convert", fail)
        cut = CliRunner().invoke(main, words)
    assert cut.exit_code == 1
    assert "killed here" in cut.stderr
    trained = (remote.model("deeplab") / "model.safetensors").read_bytes()

    whole = CliRunner().invoke(main, words)
    assert whole.exit_code == 0, whole.stderr
    value = json.loads(whole.stdout)
    assert len(value["samples"]) == 4
    page = Path(value["report"]).read_text(encoding="utf-8")
    assert flow.STAND_IN in page
    assert "stand-in" in whole.stderr
    assert (remote.model("deeplab") / "model.safetensors").read_bytes() == trained  # not trained again
    assert (remote.report("segment-train") or {})["trained"]

    files = {
        path: path.stat().st_mtime_ns for path in remote.root.rglob("*.png") if path.parent != remote.reports
    }
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0, again.stderr
    kept = {path: path.stat().st_mtime_ns for path in files}
    changed = [path.name for path in files if kept[path] != files[path]]
    assert set(changed) <= {"enlarged.png", "mixed.png"}
    assert len(json.loads(again.stdout)["samples"]) == 4
