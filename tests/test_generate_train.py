"""The three trainings: they learn, they can be killed, and what is wrong is said in one line."""

from __future__ import annotations

import errno
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from toy_paintings import toy_workspace

from annotate.errors import UserError
from annotate.masks import Encoding, write_mask
from annotate.workspace import Workspace
from generate.commands import generate
from generate.config import SEED_MASK_CODES, SEED_PAINTING_CODES, SEED_TRANSFORMER
from generate.gpt import GPT
from generate.losses import detail_loss
from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER, MaskCodesSettings, PaintingCodesSettings
from generate.presets import TransformerSettings as Transformer
from generate.tokens import Tokens, Windows
from generate.train import Stage, fit_stage
from generate.train_codes import MaskStage, train_mask_codes, train_painting_codes
from generate.train_transformer import TransformerStage, train_transformer
from generate.training_state import STATE, Basis
from generate.vqgan import VQGAN
from generate.working_copies import CopiedAdamW

SIZES: dict[str, Any] = {
    "channel_multipliers": "1,1",
    "z_channels": 8,
    "embed_dim": 8,
    "codebook_size": 16,
    "smallest_side": 0,
    "crop": 16,
    "batch": 2,
    "precision": "float32",
    "save_every": 4,
}
PAINTING = PaintingCodesSettings(steps=10, start_codebook=3, revive_every=2, perceptual="none", **SIZES)
MASK = MaskCodesSettings(steps=10, start_codebook=3, revive_every=2, loss="balanced", open_part=0.3, **SIZES)
TOKENS = Transformer(
    steps=10, layers=2, heads=2, width=32, window=4, views=2, dropout=0.1, token_dropout=0.1,
    smallest_side=0, crop=16, batch=2, precision="float32", save_every=4, warmup=2,
    open_all=0.1, open_part=0.2,
)  # fmt: skip
TRAININGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "painting": (train_painting_codes, PAINTING, "painting-codes"),
    "adversarial": (
        train_painting_codes,
        replace(
            PAINTING,
            texture=1.0,
            adversarial=0.5,
            adversarial_start=5,
            discriminator_channels=4,
            accumulate=2,
            crop=32,
            augment=True,
        ),
        "painting-codes",
    ),
    "mask": (train_mask_codes, MASK, "mask-codes"),
    "transformer": (train_transformer, TOKENS, "transformer"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with both codes."""
    workspace = toy_workspace(tmp_path_factory.mktemp("toy") / "workspace")
    train_painting_codes(workspace, PAINTING, "cpu")
    train_mask_codes(workspace, MASK, "cpu")
    return workspace


def copy(workspace: Workspace, root: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(workspace.root, root)))


@pytest.mark.parametrize("name", ["small", "seed"])
def test_presets_have_the_sizes_of_the_seed_document(name: str) -> None:
    painting, mask = PAINTING_CODES[name].vqgan(), MASK_CODES[name].vqgan()
    gpt = TRANSFORMER[name].gpt(max(painting.codebook_size, mask.codebook_size))
    assert painting.downsampling == mask.downsampling
    assert TRANSFORMER[name].window == gpt.window
    assert TRANSFORMER[name].reach == "--window (now 16)"
    # no option of it any more, but in the marks of trainings that are done
    assert TRANSFORMER[name].deciding()["crop"] == {"small": 128, "seed": 256}[name]
    if name == "seed":
        assert (painting, mask, gpt) == (SEED_PAINTING_CODES, SEED_MASK_CODES, SEED_TRANSFORMER)
        with torch.device("meta"):
            count = sum(one.numel() for one in GPT(gpt).parameters())
            channels = VQGAN(mask).encoder.conv_in.weight.shape
        layer = 12 * 1024**2 + 13 * 1024
        assert count == 24 * layer + 2 * 1024 * 1024 + 512 * 1024 + 2 * 1024
        assert channels == (128, 182, 3, 3)
        assert (PAINTING_CODES[name].smallest_side, PAINTING_CODES[name].crop) == (460, 256)


def test_painting_codes_overfit(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path, count=3, size=(16, 16))
    config = replace(PAINTING, steps=120, start_codebook=40, lr=3e-3, save_every=120)
    result = train_painting_codes(workspace, config, "cpu")
    history = (workspace.report("generate-train-painting") or {})["history"]
    assert result.loss < 0.35 * history[0]["l1"]
    assert result.used > 1
    assert history[-1] == {"step": 120, "used": result.used, "perplexity": result.perplexity}
    with Image.open(workspace.reports / "generate-train-painting.png") as grid:
        assert grid.size == (32, 32)
        pixels = np.asarray(grid, dtype=float)
    assert np.abs(pixels[:16] - pixels[16:]).mean() < 20


def test_transformer_overfits_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    paintings = [Tokens(str(n), (torch.randint(16, (2, 4, 4)),)) for n in range(3)]
    config = replace(TOKENS, steps=120, lr=1e-2, batch=3, dropout=0.0, token_dropout=0.0, save_every=120)
    stage = TransformerStage(GPT(config.gpt(16)), config, Basis({}), paintings, 16)
    fit_stage(stage, Windows(paintings, 4, 0), tmp_path, "cpu", "Overfitting")
    assert stage.latest("loss") < 0.1
    assert stage.best < 0.1


def test_copies_in_bfloat16_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paintings = [Tokens(str(n), (torch.arange(32).view(2, 4, 4) % (3 + n),)) for n in range(3)]
    config = replace(TOKENS, steps=8, batch=2, accumulate=1, clip=0.0, precision="bfloat16", save_every=8)
    found = []
    for name in ("copies", "plain"):
        torch.manual_seed(0)
        stage = TransformerStage(GPT(config.gpt(16)), config, Basis({}), [], 16)
        fit_stage(stage, Windows(paintings, 4, 0), tmp_path / name, "cpu", "With copies")
        found.append((stage.optimizer.copies, stage.gpt.state_dict(), stage.optimizer.state_dict()["state"]))
        monkeypatch.setattr(CopiedAdamW, "copy_matrices", lambda *_, **__: None)
    (copies, weights, states), (none, others, other_states) = found
    assert len(copies) == 6 * config.layers + 1
    assert all(torch.equal(copy, one.bfloat16()) for one, copy in copies.items())
    assert not none
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert all(torch.equal(states[n][key], other_states[n][key]) for n in states for key in states[n])


def test_training_stops_when_held_out_paintings_no_longer_gain(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = copy(trained, tmp_path / "w")
    config = replace(TOKENS, steps=200, lr=0.3, clip=0.0, warmup=0, save_every=5, patience=2)
    result = train_transformer(workspace, config, "cpu")
    assert "no better on held-out paintings since step" in capsys.readouterr().err
    history = (workspace.report("generate-train-transformer") or {})["history"]
    checks = {one["step"]: one["held_out"] for one in history if "held_out" in one}
    assert max(checks) < 200
    assert result.steps == min(checks, key=lambda step: checks[step])
    assert result.held_out_bits_per_token == pytest.approx(min(checks.values()) / math.log(2))


@pytest.mark.parametrize("name", list(TRAININGS))
def test_killed_and_resumed_is_the_same_as_never_killed(
    name: str, trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, config, model = TRAININGS[name]
    whole, cut = (copy(trained, tmp_path / part) for part in ("whole", "cut"))
    train(whole, config, "cpu", again=True)
    after = Stage._remember

    def dies(self: Stage) -> None:
        after(self)
        if self.done == 7:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "_remember", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(cut, config, "cpu", again=True)
    assert (cut.model(model) / STATE).exists()
    assert train(cut, config, "cpu").trained
    a, b = (load_file(one.model(model) / "model.safetensors") for one in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)
    report = "painting" if name == "adversarial" else name
    histories = [(one.report(f"generate-train-{report}") or {})["history"] for one in (whole, cut)]
    assert histories[0] == histories[1]
    assert not (cut.model(model) / STATE).exists()


def test_what_is_done_is_not_done_again(trained: Workspace, tmp_path: Path) -> None:
    workspace = copy(trained, tmp_path / "w")
    before = (workspace.model("mask-codes") / "model.safetensors").stat().st_mtime_ns
    assert not train_mask_codes(workspace, MASK, "cpu").trained
    assert (workspace.model("mask-codes") / "model.safetensors").stat().st_mtime_ns == before
    assert train_mask_codes(workspace, replace(MASK, steps=4), "cpu").trained
    assert train_mask_codes(workspace, replace(MASK, steps=4), "cpu", again=True).trained


@pytest.mark.parametrize("name", ["painting", "mask", "transformer"])
def test_figures_that_come_late_are_the_same(
    name: str, trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU's do, which computes the next step meanwhile."""
    train, config, _ = TRAININGS[name]
    histories = []
    for lag in (0, 1):
        monkeypatch.setattr(Stage, "lag", lag)
        workspace = copy(trained, tmp_path / str(lag))
        train(workspace, config, "cpu", again=True)
        histories.append((workspace.report(f"generate-train-{name}") or {})["history"])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_state(
    lag: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "lag", lag)
    workspace = toy_workspace(tmp_path)
    calls = []

    def breaks(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return detail_loss(a, b) * (math.nan if len(calls) > 6 else 1.0)

    monkeypatch.setattr("generate.train_codes.detail_loss", breaks)
    with pytest.raises(UserError, match=r"the loss is nan at step 7 of 10; lower --lr .* is kept"):
        train_painting_codes(workspace, PAINTING, "cpu")
    state = torch.load(workspace.model("painting-codes") / STATE, weights_only=True)
    assert state["own"]["done"] == 4
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_a_gradient_that_is_no_number_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steep(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - a.detach()).abs().sqrt().sum()  # 0, with an infinite slope

    monkeypatch.setattr("generate.train_codes.detail_loss", steep)
    for clip in (0.0, 1.0):
        workspace = toy_workspace(tmp_path / str(clip))
        with pytest.raises(UserError, match=r"the gradient is nan at step 1 of 10"):
            train_painting_codes(workspace, replace(PAINTING, clip=clip), "cpu")


def test_too_little_memory_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**52).sum()  # torch's own error: no machine has that much

    monkeypatch.setattr("generate.train_codes.detail_loss", greedy)
    with pytest.raises(UserError, match=r"out of memory on cpu: lower --batch \(now 2\) and raise --accum"):
        train_painting_codes(toy_workspace(tmp_path), PAINTING, "cpu")


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, saves = toy_workspace(tmp_path), []
    save = L.Trainer.save_checkpoint

    def full(trainer: L.Trainer, path: Path, *rest: Any, **more: Any) -> None:
        saves.append(path)
        if len(saves) > 1:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(L.Trainer, "save_checkpoint", full)
        with pytest.raises(UserError, match="the disk is full; free some space and run the command again"):
            train_mask_codes(workspace, MASK, "cpu")
    folder = workspace.model("mask-codes")
    assert [one.name for one in folder.iterdir()] == [STATE]
    assert torch.load(folder / STATE, weights_only=True)["own"]["done"] == 4
    assert train_mask_codes(workspace, MASK, "cpu").trained


def test_a_mask_of_another_size_than_its_painting_is_named(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    write_mask(workspace.mask("shifted", "toy 1"), np.zeros((36, 40), np.uint8), Encoding.SHIFTED)
    result = run(workspace, "mask", "--smallest-side", "0", "--crop", "16", "--batch", "2")
    assert result.exit_code == 1
    assert "toy 1.png: the mask is 36 x 40, its painting 36 x 44; run `tool segment convert`" in result.output


def test_sample_grids_are_drawn_every_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(MaskStage, "draw_grid", lambda stage: drawn.append(stage.done))
    config = replace(MASK, steps=10, save_every=2, grid_every=4)
    train_mask_codes(toy_workspace(tmp_path / "a"), config, "cpu")
    assert drawn == [4, 8, 10]
    drawn.clear()
    train_mask_codes(toy_workspace(tmp_path / "b"), replace(config, grid_every=0), "cpu")
    assert drawn == [2, 4, 6, 8, 10]


def test_an_unfinished_training_of_other_settings_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = toy_workspace(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "_remember", lambda self: 1 / (6 - self.done))
        with pytest.raises(ZeroDivisionError):
            train_mask_codes(workspace, MASK, "cpu")
    with pytest.raises(
        UserError, match=r"had --codebook-size 16, now --codebook-size 20; give the same .* or --again"
    ):
        train_mask_codes(workspace, replace(MASK, codebook_size=20), "cpu")
    assert train_mask_codes(workspace, replace(MASK, codebook_size=20), "cpu", again=True).trained


def run(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(generate, ["train", *words, "-w", str(workspace.root), "--device", "cpu"])


def test_commands_from_masks_to_transformer(tmp_path: Path) -> None:
    workspace = toy_workspace(tmp_path)
    sizes = ["--smallest-side", "0", "--batch", "2", "--steps", "3"]
    codes = ["--channel-multipliers", "1,1", "--codebook-size", "8", "--start-codebook", "0"]
    short = [*codes, "--crop", "16", *sizes]
    painting = run(workspace, "painting", "--json", *short)
    assert painting.exit_code == 0, painting.output
    assert json.loads(painting.stdout)["steps"] == 3
    assert "then: tool generate train transformer" in run(workspace, "mask", *short).stdout
    tiny = ["--layers", "1", "--heads", "2", "--width", "16", "--window", "4", *sizes]
    result = run(workspace, "transformer", *tiny)
    assert "3 paintings" in result.stdout, result.output
    for name, size in (("painting", (3 * 44, 72)), ("mask", (3 * 44, 72)), ("transformer", (4 * 8, 16))):
        with Image.open(workspace.reports / f"generate-train-{name}.png") as grid:
            assert grid.size == size, name
    assert "up to date" in run(workspace, "transformer", *tiny).stdout


def test_bad_input_is_one_line(trained: Workspace, tmp_path: Path) -> None:
    workspace = copy(trained, tmp_path / "w")
    for words, code, text in (
        (("painting", "--batch", "9", "--crop", "16"), 1, "3 pictures are fewer than the batch of 9"),
        (("painting", "--crop", "18"), 2, "--crop 18 is not a multiple of"),
        (("painting", "--channel-multipliers", "1,x"), 2, "give whole numbers such as 1,2,4"),
        (
            ("painting", "--channel-multipliers", "0,1"),
            2,
            "--channel-multipliers '0,1': give one number from 1 on",
        ),
        (("mask", "--channel-multipliers", "-1"), 2, "give one number from 1 on for each level"),
        (("mask", "--channel-multipliers", ""), 2, "give one number from 1 on for each level"),
        (("mask", "--lr", "nan"), 2, "--lr nan: give a finite number"),
        (("transformer", "--lr", "inf"), 2, "--lr inf: give a finite number"),
        (("transformer", "--workers", "1000000"), 2, "--workers"),
        (
            ("mask", "--n-labels", "100", "--batch", "2"),
            1,
            "shifted id 178 has no channel with n_labels 100; train the mask codes with `tool generate train mask --n-labels 179`",
        ),
        (
            ("transformer", "--window", "32", "--smallest-side", "0"),
            1,
            "smaller than the crop of 64; use --smallest-side 64 (scales it up) or --window 18",
        ),
        (("transformer", "--crop", "32"), 2, "No such option"),
        (("painting", "--smallest-side", "0"), 1, "use --smallest-side 128 (scales it up) or --crop 32"),
        (("transformer", "--window", "4", "--batch", "4"), 1, "3 paintings to learn from are fewer"),
        (("transformer", "--width", "30", "--heads", "4"), 2, "is not a multiple of --heads 4"),
    ):
        result = run(workspace, *words)
        assert result.exit_code == code, result.output
        assert text in result.output
        assert "Traceback" not in result.output


def test_no_codes_yet_names_the_command(tmp_path: Path) -> None:
    result = run(toy_workspace(tmp_path), "transformer")
    assert result.exit_code == 1
    assert "run `tool generate train painting`" in result.output


def test_only_the_first_process_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = toy_workspace(tmp_path)
    for rank, said in (("1", False), ("0", True)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = run(workspace, "mask", "--batch", "9")
        assert "3 pictures are fewer than the batch of 9" in result.stderr
        assert ("Loading the masks" in result.stderr) == said


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_twice_the_batch(tmp_path: Path) -> None:
    """Gradients are averaged, items shared out, the codebook started alike, and one process writes."""
    words = (
        "--crop 16 --smallest-side 0 --steps 6 --save-every 3 --revive-every 0 --channel-multipliers 1,1 --codebook-size 8 "
        "--start-codebook 2 --lr 1e-3 --precision float32 --device cpu --json"
    )
    states, printed = [], []
    for name, share in (("two", ["--batch", "1", "--devices", "2"]), ("one", ["--batch", "2"])):
        workspace = toy_workspace(tmp_path / name)
        command = [sys.executable, "-m", "cli", "generate", "train", "mask", "-w", str(workspace.root)]
        done = subprocess.run([*command, *words.split(), *share], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        printed.append(json.loads(done.stdout))
        assert done.stderr.count("Loading the masks") == 1  # by one process
        assert "0/6" not in done.stderr
        states.append(load_file(workspace.model("mask-codes") / "model.safetensors"))
        assert not (workspace.model("mask-codes") / STATE).exists()
    assert all(torch.allclose(states[0][key], states[1][key], atol=2e-4) for key in states[0])
    assert printed[0]["used"] == printed[1]["used"]
