"""`tool generate train`, ended by a signal: not done, and the next run carries on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_paintings import toy_workspace

from generate.training_state import STATE

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
