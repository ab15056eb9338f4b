"""`tool segment train` and `evaluate`, ended by a signal: not done, and the next run carries on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from segment_toys import toy_workspace

from annotate.workspace import Workspace
from segment.model import read_weights
from segment.train import STATE

TRAIN = "train --init none --steps 8 --batch 2 --crop 32 --smallest-side 0 --save-every 2 --rounds 1"
EVALUATE = "evaluate --folds 2"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in one order


def command(workspace: Workspace, words: str) -> list[str]:
    return [
        sys.executable,
        *("-m", "cli", "segment"),
        *words.split(),
        "--device",
        "cpu",
        "-w",
        str(workspace.root),
    ]


def complete(workspace: Workspace, words: str) -> None:
    subprocess.run(command(workspace, words), check=True, env=ENVIRONMENT, capture_output=True)


def end(workspace: Workspace, words: str, once: Path, number: signal.Signals) -> int:
    """Exit code of a command that gets the signal once a file exists."""
    quiet = subprocess.DEVNULL
    running = subprocess.Popen(command(workspace, words), env=ENVIRONMENT, stdout=quiet, stderr=quiet)
    while not once.exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    return running.wait()


def weights(workspace: Workspace) -> dict[str, torch.Tensor]:
    return read_weights(workspace.model("deeplab") / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Trained and evaluated, never stopped."""
    workspace = toy_workspace(tmp_path_factory.mktemp("whole"))
    complete(workspace, TRAIN)
    complete(workspace, EVALUATE)
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_training_ends_with_the_same_model(
    tmp_path: Path, whole: Workspace, number: signal.Signals
) -> None:
    broken = toy_workspace(tmp_path)
    assert end(broken, TRAIN, broken.model("deeplab") / STATE, number) == -number
    assert not (broken.model("deeplab") / "model.safetensors").exists()
    complete(broken, TRAIN)
    one, two = weights(whole), weights(broken)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert broken.report("segment-train")["loss"] == whole.report("segment-train")["loss"]  # type: ignore[index]


@pytest.mark.slow
def test_a_stopped_evaluation_repeats_no_fold(tmp_path: Path, whole: Workspace) -> None:
    broken = Workspace(tmp_path / "broken")
    shutil.copytree(whole.root, broken.root)
    folds = broken.model("deeplab") / "folds"
    shutil.rmtree(folds)
    (broken.root / "reports" / "segment-evaluate.json").unlink()
    second = folds / "1" / STATE  # of two
    assert end(broken, EVALUATE, second, signal.SIGTERM) == -signal.SIGTERM
    assert broken.report("segment-evaluate") is None
    first = (folds / "0.npz").stat().st_mtime_ns
    complete(broken, EVALUATE)
    assert (folds / "0.npz").stat().st_mtime_ns == first
    one, two = broken.report("segment-evaluate"), whole.report("segment-evaluate")
    assert one is not None
    assert two is not None
    assert one["confusion"] == two["confusion"]
