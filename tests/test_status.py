"""`tool status` reads the workspace off its files and names the next command."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from annotate.files import write_json
from annotate.masks import LEARNT_FROM, Encoding, mask_digests, write_mask
from annotate.paintings import Painting, write_index
from annotate.workspace import Workspace
from cli import main
from demo.status import position

KEYS = ["a", "b", "sub/c d", "e"]


def filled(
    root: Path, hand: int = 0, pseudo: int = 0, shifted: int = 0, models: tuple[str, ...] = ()
) -> Workspace:
    workspace = Workspace(root)
    write_index(
        workspace, [Painting(k, f"{k}.png", (4, 6), "0" * 64, "hand" if k in "ab" else "rest") for k in KEYS]
    )
    for kind, keys in (
        ("hand", KEYS[:hand]),
        ("pseudo", KEYS[hand : hand + pseudo]),
        ("shifted", KEYS[:shifted]),
    ):
        for key in keys:
            encoding = Encoding.SHIFTED if kind == "shifted" else Encoding.RAW
            write_mask(workspace.mask(kind, key), np.zeros((4, 6), np.uint8), encoding)
    for name in models:
        workspace.model(name).mkdir(parents=True)
        (workspace.model(name) / "model.safetensors").write_bytes(b"")
    return workspace


def run(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(main, ["status", "--workspace", str(workspace.root), *words])


def test_an_empty_workspace_begins_with_push(tmp_path: Path) -> None:
    assert position(Workspace(tmp_path)).next.startswith("tool annotate push PAINTINGS --workspace ")
    assert list(tmp_path.iterdir()) == []  # looking changes nothing


GENERATOR = ("painting-codes", "mask-codes", "transformer")


@pytest.mark.parametrize(
    ("hand", "pseudo", "shifted", "models", "next_command"),
    [
        (0, 0, 0, (), "annotate in Label Studio"),
        (1, 0, 0, (), "tool segment train"),
        (2, 0, 0, (), "tool segment train"),
        (2, 0, 0, ("deeplab",), "tool segment pseudo-label"),
        (2, 1, 0, ("deeplab",), "tool segment pseudo-label"),
        (2, 2, 0, ("deeplab",), "tool segment convert"),
        (2, 2, 4, ("deeplab",), "tool generate train painting"),
        (2, 2, 4, ("deeplab", "painting-codes"), "tool generate train mask"),
        (2, 2, 4, ("deeplab", "painting-codes", "mask-codes"), "tool generate train transformer"),
        (2, 2, 4, ("deeplab", *GENERATOR), "tool generate sample --mask a"),
    ],
)
def test_the_next_command_follows_the_flow(
    tmp_path: Path, hand: int, pseudo: int, shifted: int, models: tuple[str, ...], next_command: str
) -> None:
    assert position(filled(tmp_path, hand, pseudo, shifted, models)).next.startswith(next_command)


def test_other_hand_masks_ask_for_training_again_and_copies_do_not(tmp_path: Path) -> None:
    workspace = filled(tmp_path / "work", 2, 2, 4, ("deeplab", *GENERATOR))
    assert "train again" not in str(position(workspace).steps), (
        "a model that does not say what it learnt from"
    )
    write_json(workspace.model("deeplab") / LEARNT_FROM, mask_digests(workspace.masks("hand")))
    shutil.copytree(workspace.root, tmp_path / "copy")
    copy = Workspace(tmp_path / "copy")
    later = time.time() + 100
    os.utime(copy.mask("hand", "a"), (later, later))
    again = {"annotation": "8 2026-01-01"}  # submitted once more, without a change
    write_mask(copy.mask("hand", "b"), np.zeros((4, 6), np.uint8), Encoding.RAW, again)
    assert "train again" not in str(position(copy).steps)
    assert position(copy).next.startswith("tool generate sample")
    write_mask(copy.mask("hand", "a"), np.ones((4, 6), np.uint8), Encoding.RAW)
    assert position(copy).next.startswith("tool segment train")
    assert "1 hand mask changed since: train again" in str(position(copy).steps)
    copy.mask("hand", "b").unlink()
    write_mask(copy.mask("hand", "e"), np.ones((4, 6), np.uint8), Encoding.RAW)
    assert "3 hand masks changed since: train again" in str(position(copy).steps)


def test_an_unfinished_training_is_told_and_comes_next(tmp_path: Path) -> None:
    workspace = filled(tmp_path, 2, 2, 4, ("deeplab", *GENERATOR))
    workspace.save_report("generate-train-mask", {"loss": 0.5, "used": 100})
    state = workspace.model("mask-codes") / "training.ckpt"
    state.touch()
    line = next(line for line in run(workspace).stdout.splitlines() if "mask codes" in line)
    assert "done" not in line
    assert (
        "a training is unfinished: `tool generate train mask` with the same options goes on with it" in line
    )
    assert position(workspace).next.startswith("tool generate train mask")
    (workspace.model("mask-codes") / "model.safetensors").unlink()
    assert "a training is unfinished" in run(workspace).stdout
    state.unlink()
    assert "a training is unfinished" not in run(workspace).stdout


def test_status_prints_counts_and_the_same_as_json(tmp_path: Path) -> None:
    workspace = filled(tmp_path / "it's here", 2, 1, 0, ("deeplab",))
    text = run(workspace).stdout
    assert "1 of 2" in text
    value = json.loads(run(workspace, "--json").stdout)
    counts = {step["name"]: (step["done"], step["total"]) for step in value["steps"]}
    assert counts["hand masks"] == (2, 2)
    assert counts["pseudo masks"] == (1, 2)
    assert counts["samples"] == (0, 1)
    assert value["next"].endswith("--workspace '" + str(workspace.root).replace("'", "'\"'\"'") + "'")


def test_a_damaged_list_is_one_line(tmp_path: Path) -> None:
    workspace = filled(tmp_path)
    workspace.index_file.write_text('{"key": "a"}\n')
    result = run(workspace)
    assert result.exit_code == 1
    assert "paintings.jsonl:1: damaged" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_last_figures_stand_beside_their_step(tmp_path: Path) -> None:
    workspace = filled(tmp_path, 2, 2, 4, ("deeplab", *GENERATOR))
    workspace.save_report("segment-evaluate", {"miou": 0.6181, "pixel_accuracy": 0.835, "classes": []})
    workspace.save_report("generate-train-transformer", {"bits_per_token": 4.321, "history": [1]})
    notes = {step.name: step.note for step in position(workspace).steps}
    assert notes["DeepLab"] == "mIoU 61.8 %, pixel accuracy 83.5 %"
    assert notes["transformer"] == "bits a token 4.32"
    assert notes["mask codes"] == ""
    assert "mIoU 61.8 %" in run(workspace).stdout


def test_the_report_is_written_on_request(tmp_path: Path) -> None:
    workspace = filled(tmp_path)  # nothing but the list of paintings
    assert not workspace.reports.exists()
    value = json.loads(run(workspace, "--report", "--json").stdout)
    page = Path(value["report"]).read_text(encoding="utf-8")
    assert "At a glance" in page
    assert run(Workspace(tmp_path / "empty"), "--report").exit_code == 1
