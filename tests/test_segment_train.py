"""Learner: up to date, resumed after a kill, stopped by a loss that is not finite, and quiet."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_toys import SHORT, toy, toy_workspace

from annotate.errors import UserError
from annotate.files import read_json
from annotate.masks import LEARNT_FROM, Encoding, mask_digests, read_mask, write_mask
from annotate.workspace import Workspace
from segment import train as training
from segment.data import load_samples
from segment.learner import Learner
from segment.model import load, read_weights, saved_config
from segment.train import STATE, _steps_done, split, train

CPU = torch.device("cpu")


def weights(workspace: Workspace) -> dict[str, torch.Tensor]:
    return read_weights(workspace.model("deeplab") / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = toy_workspace(tmp_path_factory.mktemp("trained"))
    assert train(workspace, SHORT, "cpu").trained
    return workspace


def test_what_it_leaves(trained: Workspace) -> None:
    folder = trained.model("deeplab")
    assert (folder / "model.safetensors").exists()
    assert not (folder / STATE).exists()
    logged = (folder / "logs" / "version_0" / "metrics.csv").read_text()
    assert "loss" in logged.splitlines()[0]
    config = saved_config(trained)
    assert config is not None
    assert config["train"]["steps"] == SHORT.steps
    assert config["classes"][0]["name"] == "road"
    assert config["figures"]["loss"] > 0
    assert load(trained, CPU).smallest_side == 0


def test_up_to_date_until_a_mask_changes(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(trained)
    again = train(trained, SHORT, "cpu")
    assert not again.trained
    assert again.loss == saved_config(trained)["figures"]["loss"]  # type: ignore[index]
    assert train(trained, SHORT, "cpu", again=True).trained
    assert all(torch.equal(value, before[name]) for name, value in weights(trained).items())  # same seed
    ids = read_mask(trained.mask("hand", "set/p1"), Encoding.RAW)
    write_mask(trained.mask("hand", "set/p1"), ids, Encoding.RAW, {"annotation": "submitted again"})
    assert not train(trained, SHORT, "cpu").trained, "nothing else is seen in it"
    recorded = read_json(trained.model("deeplab") / LEARNT_FROM)
    assert recorded == mask_digests(trained.masks("hand"))
    write_mask(trained.mask("hand", "set/p3"), toy(3, (43, 56))[1], Encoding.RAW)
    result = train(trained, SHORT, "cpu")
    assert result.trained
    assert result.masks == 4
    assert not train(trained, SHORT, "cpu").trained
    assert train(trained, replace(SHORT, steps=2), "cpu").trained
    assert capsys.readouterr().out == ""


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = toy_workspace(tmp_path / "whole"), toy_workspace(tmp_path / "broken")
    config = replace(SHORT, steps=6, rounds=1)
    expected = train(whole, config, "cpu")
    step = Learner.training_step
    steps: list[int] = []

    def dies(self: Learner, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        if self.global_step == 4:
            raise MemoryError("killed")
        return step(self, batch, number)

    def counts(self: Learner, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        steps.append(self.global_step)
        return step(self, batch, number)

    monkeypatch.setattr(Learner, "training_step", dies)
    with pytest.raises(MemoryError):
        train(broken, config, "cpu")
    assert (broken.model("deeplab") / STATE).exists()
    monkeypatch.setattr(Learner, "training_step", counts)
    result = train(broken, config, "cpu")
    assert steps == list(range(steps[0], 6))
    assert steps[0] >= 3  # neither the first round is repeated, nor its labelling
    assert result.loss == expected.loss
    one, two = weights(whole), weights(broken)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_model_stays_beside_an_unfinished_training_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = toy_workspace(tmp_path)
    train(workspace, SHORT, "cpu")
    step = Learner.training_step

    def dies(self: Learner, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        if self.global_step == 2:
            raise MemoryError("killed")
        return step(self, batch, number)

    monkeypatch.setattr(Learner, "training_step", dies)
    with pytest.raises(MemoryError):
        train(workspace, replace(SHORT, lr=5e-4), "cpu")
    kept = (workspace.model("deeplab") / STATE).read_bytes()
    assert not train(workspace, SHORT, "cpu").trained
    assert (workspace.model("deeplab") / STATE).read_bytes() == kept
    with pytest.raises(MemoryError):
        train(workspace, SHORT, "cpu", again=True)
    monkeypatch.setattr(Learner, "training_step", step)
    assert train(workspace, SHORT, "cpu").trained  # what --again began


class Malicious:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trap,))


def test_a_damaged_or_malicious_state_is_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, trap = tmp_path / STATE, tmp_path / "trap"
    assert _steps_done(state, "mark") is None
    torch.save({"mark": "mark", "global_step": 7}, state)
    assert _steps_done(state, "mark") == 7
    assert _steps_done(state, "another") is None
    assert capsys.readouterr().err == ""
    for bad in ([1, 2], {"mark": "mark"}, {"mark": "mark", "global_step": "x"}, Malicious(trap)):
        torch.save(bad, state)
        assert _steps_done(state, "mark") is None
        assert "damaged" in capsys.readouterr().err
    for content in (b"", b"\x80\x02.", b"PK\x03\x04 cut off", pickle.dumps(Malicious(trap))):
        state.write_bytes(content)
        assert _steps_done(state, "mark") is None
        assert "damaged" in capsys.readouterr().err
    assert not trap.exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_model(trained: Workspace) -> None:
    before = weights(trained)
    with pytest.raises(
        UserError, match=r"training stopped: the (loss|gradient) is .* at step \d+ of 6; lower --lr"
    ):
        train(trained, replace(SHORT, lr=1e30, steps=6), "cpu")
    assert all(torch.equal(value, before[name]) for name, value in weights(trained).items())
    (trained.model("deeplab") / STATE).unlink(missing_ok=True)


def test_a_batch_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(SHORT, batch=1, steps=2, patience=3)
    assert train(toy_workspace(tmp_path, hand=1), config, "cpu").trained
    assert "--patience has no effect" in capsys.readouterr().err


def test_memory_that_does_not_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Learner, "training_step", full)
    with pytest.raises(UserError, match=r"lower --batch \(now 2\) or --crop \(now 32\)"):
        train(toy_workspace(tmp_path), SHORT, "cpu")


def test_logs_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", "models/deeplab/logs/version_0")

    monkeypatch.setattr("lightning.Trainer.fit", refused)
    with pytest.raises(UserError, match=r"logs/version_0: Permission denied; .*mend the permissions"):
        train(toy_workspace(tmp_path), SHORT, "cpu")


def test_more_devices_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--devices 2: torch sees 1 here"):
        train(toy_workspace(tmp_path), replace(SHORT, devices=2), "cuda")
    with pytest.raises(ValueError, match="--batch 2 cannot be shared evenly by 3"):
        replace(SHORT, devices=3)


def test_it_stops_when_nothing_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ENOUGH", 3)
    stretches: list[float] = []

    def validate(self: Learner) -> float:
        stretches.append(0.5)
        return 0.5

    monkeypatch.setattr(Learner, "_validate", validate)
    config = replace(SHORT, held_out=0.34, steps=9, save_every=1, patience=2)
    train(toy_workspace(tmp_path), config, "cpu")
    assert len(stretches) == 3  # the first is the best, and two more bring nothing


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_such_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        train(toy_workspace(tmp_path), SHORT, "cuda")


def test_held_out_only_of_enough_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ENOUGH", 3)
    workspace = toy_workspace(tmp_path)
    result = train(workspace, replace(SHORT, held_out=0.34, steps=3), "cpu")
    assert result.held_out == 1
    assert result.miou is not None
    assert 0 <= result.miou <= 1
    logged = (workspace.model("deeplab") / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("miou")
    assert [line.split(",")[column] != "" for line in logged[1:]].count(
        True
    ) == 2  # the last, short stretch too
    assert list((workspace.model("deeplab") / "tensorboard").rglob("events.out.*"))
    monkeypatch.setattr(training, "ENOUGH", 20)
    samples = load_samples(toy_workspace(tmp_path), Workspace(tmp_path).settings().classes, 0)
    assert split(samples, SHORT) == (samples, [])
    many = [replace(samples[0], key=str(n)) for n in range(20)]
    learn, check = split(many, SHORT)
    assert (len(learn), len(check)) == (18, 2)


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """Three colours are told apart after a minute: the whole chain of crops, loss, schedule and labelling."""
    from segment.config import LabelConfig
    from segment.evaluate import against_truth
    from segment.label import pseudo_label
    from segment.scores import score

    workspace = toy_workspace(tmp_path)
    train(workspace, replace(SHORT, steps=150, batch=4, lr=3e-3, save_every=75), "cpu")
    pseudo_label(workspace, LabelConfig(), "cpu")
    compared, matrix = against_truth(workspace, tmp_path / "truth")
    assert compared.paintings == 2
    assert score(matrix, [""] * 6).miou > 0.3  # of three classes; an untrained network has about 0.1
    assert np.isfinite(matrix).all()
