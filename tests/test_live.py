"""What is seen of a painting while it is painted, and what an interruption leaves: nothing half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_painter import SIZE, pixels, sample, small_painter

from annotate.errors import UserError
from annotate.masks import Encoding, shift, write_mask
from annotate.workspace import Workspace
from generate.live import BLANK, Live
from generate.recipe import read_recipe, write_painting

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_painter(tmp_path_factory.mktemp("painter"))


def test_a_folder_that_takes_no_paintings_is_said_before_any_is_painted(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.png").write_text("in the way")
    monkeypatch.setattr("generate.sample.paint_tokens", None)  # is not reached
    for folder in (tmp_path / "file.png", tmp_path / "file.png" / "below", Path("/proc/self/new")):
        result = sample(workspace, "--mask", "p0", "--out", str(folder))
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert f"error: {folder}: paintings cannot be written there" in result.stderr
        assert "choose another --out" in result.stderr


def test_ctrl_c_while_paintings_are_written_loses_none(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal, when the first of them is about to be written; an unfinished one goes when its painting comes."""
    left = tmp_path / "p0-seed0-01-unfinished.png"
    left.write_bytes(b"of an earlier run")

    def write(path: Path, *rest: Any) -> None:
        if path.name == "p0-seed0-00.png":
            os.kill(os.getpid(), signal.SIGINT)
        write_painting(path, *rest)

    monkeypatch.setattr("generate.sample.write_painting", write)
    result = sample(workspace, "--mask", "p0", "--count", "3", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "writing what is painted; then it stops",
        "error: interrupted; what was painted is written, and the same command paints the rest",
    ]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"p0-seed0-0{n}.png" for n in range(3)]


def test_the_canvas_so_far_has_the_colours_of_the_painting(tmp_path: Path) -> None:
    """What is not painted must not colour what is: here the decoder is a mean of all that it is given."""
    tokens, cells = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.bool)
    live = Live(lambda *of: None, 1, lambda t: np.full((4, 4, 3), int(t.float().mean()), np.uint8), 1)
    named = [(tmp_path / "one.png", {"seed": 1})]
    with pytest.raises(UserError, match="interrupted at 8 of 16 tokens"), live.painting(named):
        live.follow(tokens, cells)
        tokens[0, :2], cells[:2] = 90, True
        raise KeyboardInterrupt
    canvas = pixels(tmp_path / "one-unfinished.png")
    assert (canvas[:2] == 90).all()
    assert (canvas[2:] == BLANK).all()


def test_the_check_is_said_and_can_be_left_out(workspace: Workspace, tmp_path: Path) -> None:
    third = workspace.mask("shifted", "p2")
    write_mask(third, shift(np.full(SIZE, 148, np.uint8)), Encoding.SHIFTED)
    try:
        mask = tmp_path / "all-trees.png"
        write_mask(mask, np.full(SIZE, 168, np.uint8), Encoding.RAW)
        words = ("--mask", str(mask), "--out", str(tmp_path))
        said = sample(workspace, *words, "--json")
        assert said.exit_code == 0
        assert "composition: trees cover 100 % of the canvas; in your paintings 0-8 %" in said.stderr
        value = json.loads(said.stdout)
        assert any("trees cover 100 %" in line for line in value["departures"])
        assert value["nearest"] in {"p0", "p1", "p2"}
        assert "composition" not in sample(workspace, *words, "--no-check").stderr
    finally:
        third.unlink()


def test_ctrl_c_leaves_the_canvas_so_far(workspace: Workspace, tmp_path: Path) -> None:
    """A real SIGINT to the real command, while a preview lies there."""
    words = [
        "generate",
        "sample",
        "-w",
        str(workspace.root),
        "--mask",
        "p0",
        "--size",
        "1024x1024",
        "--seed",
        "1",
    ]
    command = [
        sys.executable,
        "-m",
        "cli",
        *words,
        "--stride",
        "1",
        "--preview",
        "64",
        "--out",
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background deaf to SIGINT, and these tests may be such.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    preview = tmp_path / "p0-seed1-00-preview.png"
    patience = time.monotonic() + 240
    while not preview.exists() and time.monotonic() < patience:
        assert running.poll() is None
        time.sleep(0.05)
    assert pixels(preview).shape == (1024, 1024, 3)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=240)
    assert running.returncode == 1
    last = said.strip().splitlines()[-1]
    left = tmp_path / "p0-seed1-00-unfinished.png"
    assert f"the canvas so far: {left}" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name]
    assert pixels(left).shape == (1024, 1024, 3)
    assert (pixels(left)[-16:] == 236).all()  # nothing is painted there yet
    assert (pixels(left)[:16, :16] != 236).any()
    with Image.open(left) as image:
        assert json.loads(image.info["recipe"])["unfinished"] >= 64
    assert read_recipe(left)["seed"] == 1
