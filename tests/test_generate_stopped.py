"""A training that was ended before its end: not done, and the next run carries on."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toy_paintings import toy_workspace

from annotate.errors import UserError
from annotate.masks import Encoding, write_mask
from annotate.paintings import read_index
from annotate.workspace import Workspace
from generate.checkpoint import read_checkpoint
from generate.commands import generate
from generate.presets import MaskCodesSettings, PaintingCodesSettings
from generate.train import Stage
from generate.train_codes import train_mask_codes, train_painting_codes
from generate.training_state import STATE, fingerprint

SIZES: dict[str, Any] = {
    "steps": 10, "start_codebook": 3, "channel_multipliers": "1,1", "z_channels": 8, "embed_dim": 8,
    "codebook_size": 16, "smallest_side": 0, "crop": 16, "batch": 2, "precision": "float32", "save_every": 2,
}  # fmt: skip
PAINTING = PaintingCodesSettings(perceptual="none", **SIZES)
MASK = MaskCodesSettings(revive_every=2, loss="balanced", open_part=0.3, **SIZES)

SMALL = (
    "--steps 24 --save-every 2 --batch 2 --crop 16 --smallest-side 0 --channel-multipliers 1,1 --codebook-size 8 "
    "--start-codebook 2 --precision float32 --workers 1 --device cpu --json"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 1)]
)
def test_a_stopped_training_goes_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    workspace = toy_workspace(tmp_path / "workspace")
    words = [sys.executable, "-m", "cli", "generate", "train", "mask", *SMALL.split()]
    words += ["-w", str(workspace.root)]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = workspace.model("mask-codes")
    while not (folder / STATE).exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    said = running.communicate()[1]
    assert running.returncode == code
    line = f"stopped; the same command goes on from the last saved state in {folder}"
    assert (line in said.splitlines()) == (number == signal.SIGINT)
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
        losses.append((self.done, self.latest_figures["loss"]))

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


def test_a_training_that_diverged_goes_on_with_a_lower_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, lower, rates = toy_workspace(tmp_path), replace(MASK, lr=1e-4), []
    rate = Stage.learning_rate

    def told(self: Stage, step: int) -> float:
        rates.append((step, rate(self, step)))
        return rates[-1][1] if self.config.lr < 1e-3 or step < 4 else math.nan

    monkeypatch.setattr(Stage, "learning_rate", told)
    with pytest.raises(
        UserError,
        match=r"step 6 of 10; lower --lr \(now 0.001\); .* goes on from it, or with --again from step 0",
    ):
        train_mask_codes(workspace, MASK, "cpu")
    rates.clear()
    assert train_mask_codes(workspace, lower, "cpu").steps == 10
    assert "going on at step 4 of 10 with --lr 0.0001 instead of 0.001" in capsys.readouterr().err
    assert [step for step, _ in rates] == [4, 5, 6, 7, 8, 9]
    assert max(value for _, value in rates) < 1e-4
    assert not train_mask_codes(workspace, lower, "cpu").trained
    assert train_mask_codes(workspace, replace(MASK, lr=2e-4), "cpu").trained


def test_the_learning_rate_of_a_training_without_steps_left_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = toy_workspace(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("generate.train_codes.save_model", lambda *_: 1 / 0)
        train_mask_codes(workspace, MASK, "cpu")
    with pytest.raises(UserError, match=r"had --lr 0.001, now --lr 0.0001; give the same"):
        train_mask_codes(workspace, replace(MASK, lr=1e-4), "cpu")
    assert train_mask_codes(workspace, MASK, "cpu").steps == 10


def test_new_pictures_or_codes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = toy_workspace(tmp_path)
    with killed(5):
        train_mask_codes(workspace, MASK, "cpu")
    ids = np.zeros((36, 44), np.uint8)
    write_mask(workspace.mask("shifted", "toy 0"), ids, Encoding.SHIFTED)
    assert train_mask_codes(workspace, MASK, "cpu").trained
    assert (
        "the paintings, masks or codes changed since training began; it starts afresh"
        in capsys.readouterr().err
    )


def test_what_was_left_of_states_half_written_goes(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    folder = workspace.model("mask-codes")
    folder.mkdir(parents=True)
    left, other = folder / f".{STATE}.a1b2.part", folder / "mine.part"
    left.touch()
    other.touch()
    with killed(3):
        train_mask_codes(workspace, MASK, "cpu")
    assert not left.exists()
    left.touch()
    train_mask_codes(workspace, MASK, "cpu")
    assert not left.exists()
    assert other.exists()


@pytest.fixture
def vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaintingCodesSettings:
    """PAINTING with weights for the perceptual loss; what they say of two images is simple here."""
    file = tmp_path / "vgg.pth"
    file.touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(
        "generate.train_codes.find_perceptual", lambda source: torch.nn.MSELoss() if "vgg" in source else None
    )
    return replace(PAINTING, perceptual=str(file))


def test_a_perceptual_loss_makes_another_model(vgg: PaintingCodesSettings, tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path / "w")
    assert train_painting_codes(workspace, PAINTING, "cpu").trained
    config = read_checkpoint(workspace.model("painting-codes")).config
    pictures = [[f"toy {n}", read_index(workspace)[f"toy {n}"].sha256] for n in range(3)]
    assert config["mark"] == fingerprint(PAINTING.deciding(), pictures)  # as it always was
    assert not train_painting_codes(workspace, replace(PAINTING, perceptual="auto"), "cpu").trained
    assert train_painting_codes(workspace, vgg, "cpu").trained
    assert "perceptual (VGG16)" in read_checkpoint(workspace.model("painting-codes")).config["losses"]
    assert not train_painting_codes(workspace, replace(PAINTING, perceptual="auto"), "cpu").trained
    elsewhere = Path(vgg.perceptual).rename(tmp_path / "vgg-16.pth")
    assert not train_painting_codes(workspace, replace(vgg, perceptual=str(elsewhere)), "cpu").trained
    assert train_painting_codes(workspace, PAINTING, "cpu").trained


def test_a_training_goes_on_with_the_same_losses(vgg: PaintingCodesSettings, tmp_path: Path) -> None:
    for before, now, line in (
        (PAINTING, vgg, "had --perceptual none, now --perceptual VGG16; give the same"),
        (vgg, PAINTING, "had --perceptual VGG16, now --perceptual none; give the same"),
    ):
        workspace = toy_workspace(tmp_path / str(before is vgg))
        with killed(3):
            train_painting_codes(workspace, before, "cpu")
        with pytest.raises(UserError, match=line):
            train_painting_codes(workspace, now, "cpu")


def test_again_begins_at_step_0_and_leaving_it_out_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = toy_workspace(tmp_path)
    train_mask_codes(workspace, MASK, "cpu")
    for _ in range(2):
        with killed(5):
            train_mask_codes(workspace, MASK, "cpu", again=True)
    assert "going on" not in capsys.readouterr().err
    assert train_mask_codes(workspace, MASK, "cpu").trained
    assert "going on at step 4 of 10" in capsys.readouterr().err
    said = CliRunner().invoke(generate, ["train", "mask", "--help"]).stdout
    assert "leave it out" in " ".join(said.split())
