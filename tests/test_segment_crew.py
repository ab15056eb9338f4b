"""Several processes: every painting labelled once, the same masks, one model, and a clear end when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from segment_toys import toy_workspace
from test_segment_predict import untrained

from annotate.workspace import Workspace
from segment.config import LabelConfig
from segment.crew import Crew
from segment.label import pseudo_label
from segment.model import saved_config
from segment.train import STATE

PAINTINGS, HAND = 12, 2


def torchrun(workspace: Workspace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "cli",
        "segment",
        "pseudo-label",
        "--device",
        "cpu",
        "--json",
        "-w",
        str(workspace.root),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def masks(workspace: Workspace) -> dict[str, bytes]:
    return {key: workspace.mask("pseudo", key).read_bytes() for key in workspace.keys_with_mask("pseudo")}


def test_each_item_belongs_to_one_process() -> None:
    items = list(range(11))
    shares = [Crew(rank, 3).share(items) for rank in range(3)]
    assert sorted(one for share in shares for one in share) == items
    assert [len(share) for share in shares] == [4, 4, 3]
    assert Crew().share(items) == items
    assert Crew().gather("mine") == ["mine"]


@pytest.mark.slow
def test_two_processes_label_every_painting_once(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, PAINTINGS, HAND)
    untrained(workspace)
    alone = pseudo_label(workspace, LabelConfig(), "cpu")
    wanted = masks(workspace)
    for key in wanted:
        workspace.mask("pseudo", key).unlink()
    running = torchrun(workspace)
    out, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    found = json.loads(out)  # one object, of the first process
    assert (found["labelled"], found["there"]) == (PAINTINGS - HAND, 0)
    assert found["mean_confidence"] == pytest.approx(alone.mean_confidence, abs=1e-3)
    assert masks(workspace) == wanted
    for rank in (1, 2):
        assert f"process {rank} of 2: 5/5" in errors  # five each: none twice, none left


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, 80, HAND)
    untrained(workspace)
    running = torchrun(workspace)
    until = time.monotonic() + 240
    while not workspace.keys_with_mask("pseudo") and time.monotonic() < until:
        time.sleep(0.01)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [int(one) for one in children if b"segment" in Path(f"/proc/{one}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    out, errors = running.communicate(timeout=120)
    assert running.returncode != 0
    assert out == ""
    assert "SIGKILL" in errors or "another process of this run has ended" in errors
    before = masks(workspace)
    assert 0 < len(before) < 78
    again = pseudo_label(workspace, LabelConfig(), "cpu")
    assert (again.labelled, again.there) == (78 - len(before), len(before))


@pytest.mark.slow
def test_two_processes_train_one_model_and_the_first_speaks(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    words = (
        "--init none --steps 4 --batch 2 --crop 32 --smallest-side 0 --save-every 2 --rounds 1 --devices 2"
    )
    command = [sys.executable, "-m", "cli", "segment", "train", "-w", str(workspace.root), "--json"]
    command += ["--device", "cpu", *words.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # one object
    assert done.stderr.count("Loading the hand masks") == 1
    saved = saved_config(workspace)
    assert saved is not None
    assert saved["figures"]["loss"] == printed["loss"]  # the model is that of the process that speaks
    assert not (workspace.model("deeplab") / STATE).exists()
