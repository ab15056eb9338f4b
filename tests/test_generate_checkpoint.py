"""Models on disk: a round trip, and one line for each thing that can be wrong with a folder."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from annotate.errors import UserError
from generate.checkpoint import load_gpt, load_vqgan, save_model
from generate.config import GPTConfig, VQGANConfig
from generate.gpt import GPT
from generate.vqgan import VQGAN

SIZES = GPTConfig(vocab_size=11, block_size=18, layers=2, heads=2, width=8)
CODES = VQGANConfig(
    channels=32, channel_multipliers=(1, 2), residual_blocks=1, z_channels=32, codebook_size=5
)


def test_round_trip_keeps_every_weight_the_sizes_and_what_was_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt, codes = GPT(SIZES), VQGAN(CODES)
    save_model(tmp_path / "gpt", gpt, {"steps": 7})
    save_model(tmp_path / "codes", codes, {"loss": "no perceptual weights"})
    for model, (loaded, found) in (
        (gpt, load_gpt(tmp_path / "gpt", "")),
        (codes, load_vqgan(tmp_path / "codes", "")),
    ):
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert loaded.config == model.config
        assert not loaded.training
        assert all(one.requires_grad for one in loaded.parameters())
        assert found.config["sizes"]["dropout"] == 0.0
    assert json.loads((tmp_path / "gpt" / "config.json").read_text())["steps"] == 7


def test_a_loaded_model_trains_without_touching_its_file(tmp_path: Path) -> None:
    save_model(tmp_path, GPT(SIZES), {})
    before = (tmp_path / "model.safetensors").read_bytes()
    model, _ = load_gpt(tmp_path, "")
    model(torch.randint(11, (2, 17))).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_digest_tells_two_trainings_apart(tmp_path: Path) -> None:
    model = GPT(SIZES)
    digests = []
    for step in range(3):
        save_model(tmp_path, model, {})
        digests.append(load_gpt(tmp_path, "")[1].digest)
        if step:
            torch.nn.init.ones_(model.head.weight)
    assert digests[0] == digests[1] != digests[2]


def test_no_model_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `tool generate train transformer`"):
        load_gpt(tmp_path, "tool generate train transformer")


def test_the_wrong_kind_and_other_sizes_name_what_differs(tmp_path: Path) -> None:
    save_model(tmp_path / "gpt", GPT(SIZES), {})
    with pytest.raises(UserError, match="holds a gpt, not a vqgan"):
        load_vqgan(tmp_path / "gpt", "train")
    path = tmp_path / "gpt" / "model.safetensors"
    tensors = load_file(path)
    config = {"kind": "gpt", "sizes": {**SIZES.to_dict(), "width": 16}}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.key\.bias is \(8,\), the config asks for \(16,\)"):
        load_gpt(tmp_path / "gpt", "train")
    config = {"kind": "gpt", "sizes": {**SIZES.to_dict(), "heads": 0}}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    with pytest.raises(UserError, match="width 8 is not a multiple of heads 0"):
        load_gpt(tmp_path / "gpt", "train")
    config = {"kind": "gpt", "sizes": {**SIZES.to_dict(), "layers": 3}}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    with pytest.raises(UserError, match=r"has no blocks\.2\..*, which the config asks for"):
        load_gpt(tmp_path / "gpt", "train")
    config = {"kind": "gpt", "sizes": {**SIZES.to_dict(), "n_layer": 2}}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    with pytest.raises(UserError, match="unknown key 'n_layer'"):
        load_gpt(tmp_path / "gpt", "train")


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_damaged_file_is_one_line(tmp_path: Path, cut: int) -> None:
    save_model(tmp_path, GPT(SIZES), {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="damaged") as caught:
        load_gpt(tmp_path, "train")
    assert "\n" not in caught.value.message


def test_a_file_without_config_is_one_line(tmp_path: Path) -> None:
    save_file(GPT(SIZES).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="damaged"):
        load_gpt(tmp_path, "train")


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    model = GPT(SIZES)
    save_model(tmp_path, model, {})

    def fail(*args: object, **kwargs: object) -> None:
        raise full

    monkeypatch.setattr("segment.tensors.save_file", fail)
    with pytest.raises(UserError, match="disk is full"):
        save_model(tmp_path, GPT(SIZES), {})
    loaded, _ = load_gpt(tmp_path, "")
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
