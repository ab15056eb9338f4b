"""A training that was ended before its end: not done, and the next run carries on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_paintings import toy_workspace

from annotate.workspace import Workspace
from generate.presets import MaskCodesSettings
from generate.train import Stage
from generate.train_codes import train_mask_codes
from generate.training_state import STATE

SIZES: dict[str, Any] = {
    "steps": 10, "start_codebook": 3, "channel_multipliers": "1,1", "z_channels": 8, "embed_dim": 8,
    "codebook_size": 16, "smallest_side": 0, "crop": 16, "batch": 2, "precision": "float32", "save_every": 2,
}  # fmt: skip
MASK = MaskCodesSettings(revive_every=2, loss="balanced", open_part=0.3, **SIZES)

SMALL = (
    "--steps 24 --save-every 2 --batch 2 --crop 16 --smallest-side 0 --channel-multipliers 1,1 --codebook-size 8 "
    "--start-codebook 2 --precision float32 --device cpu --json"
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_training_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    workspace = toy_workspace(tmp_path / "workspace")
    words = [sys.executable, "-m", "cli", "generate", "train", "mask", *SMALL.split()]
    words += ["-w", str(workspace.root)]
    quiet = subprocess.DEVNULL
    running = subprocess.Popen(words, stdout=quiet, stderr=quiet)
    folder = workspace.model("mask-codes")
    while not (folder / STATE).exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait() == -number
    assert not (folder / "model.safetensors").exists()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["steps"] == 24
    assert "going on" in done.stderr
    assert not (folder / STATE).exists()


@contextmanager
def killed(at: int) -> Iterator[None]:
    """Within it, a training ends with an error behind this step."""
    after = Stage._remember

    def dies(self: Stage) -> None:
        after(self)
        if self.done == at:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Stage, "_remember", dies)
        yield


def weights(workspace: Workspace, model: str) -> dict[str, torch.Tensor]:
    return load_file(workspace.model(model) / "model.safetensors")


@pytest.mark.parametrize("later", [1, 5, 50])
def test_saving_more_or_less_often_later_changes_nothing(
    later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (toy_workspace(tmp_path / part) for part in ("whole", "cut"))
    config = replace(MASK, accumulate=2, workers=int(later == 5))
    losses: list[tuple[int, float]] = []
    after = Stage._remember

    def remembers(self: Stage) -> None:
        after(self)
        losses.append((self.done, self.latest_sums["loss"]))

    monkeypatch.setattr(Stage, "_remember", remembers)
    train_mask_codes(whole, config, "cpu")
    unbroken, losses[:] = list(losses), []
    with killed(5):
        train_mask_codes(cut, config, "cpu")
    losses.clear()
    assert train_mask_codes(cut, replace(config, save_every=later), "cpu").steps == 10
    assert losses == unbroken[4:]
    a, b = (weights(one, "mask-codes") for one in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)
