"""taming-transformers checkpoints come in and go out; a pickle that would call something is refused by name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from golden_models import (
    GPT_SIZES,
    MASK_SIZES,
    PAINTING_SIZES,
    SHARED,
    mask_codes,
    painting_codes,
    transformer,
)

from annotate.errors import UserError
from annotate.workspace import Workspace
from cli import main
from generate.checkpoint import load_gpt, load_vqgan, save_model
from generate.taming import export_checkpoint, import_checkpoint, read_params, read_state_dict


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("trained"))
    for name, model in (
        ("painting-codes", painting_codes()),
        ("mask-codes", mask_codes()),
        ("transformer", transformer()),
    ):
        save_model(workspace.model(name), model, {})
    return workspace


@pytest.fixture(scope="module")
def exported(trained: Workspace) -> Path:
    export_checkpoint(trained, trained.root / "out.ckpt")
    return trained.root / "out.ckpt"


def same_models(a: Workspace, b: Workspace) -> bool:
    pairs = []
    for name in ("painting-codes", "mask-codes"):
        pairs.append((load_vqgan(a.model(name), "")[0], load_vqgan(b.model(name), "")[0]))
    states = [(x.state_dict(), y.state_dict()) for x, y in pairs]
    states.append(
        (
            load_gpt(a.model("transformer"), "")[0].state_dict(),
            load_gpt(b.model("transformer"), "")[0].state_dict(),
        )
    )
    return all(torch.equal(x[name], y[name]) for x, y in states for name in x)


def test_export_then_import_is_the_same(trained: Workspace, exported: Path, tmp_path: Path) -> None:
    back = Workspace(tmp_path)
    result = CliRunner().invoke(
        main,
        [
            "generate",
            "import",
            str(exported),
            "--config",
            str(exported.with_suffix(".yaml")),
            "-w",
            str(tmp_path),
        ],
    )
    assert result.exit_code == 0, result.output
    assert same_models(trained, back)


def test_export_has_every_name_and_shape_that_the_original_loads(exported: Path) -> None:
    if not SHARED.exists():
        pytest.skip("../shared/golden is not here")
    wanted = json.loads((SHARED / "tiny.json").read_text())["state_dict"]
    state = torch.load(exported, weights_only=True)["state_dict"]
    assert {name: list(one.shape) for name, one in state.items()} == wanted


def test_a_lightning_1_checkpoint_comes_in(trained: Workspace, tmp_path: Path) -> None:
    if not SHARED.exists():
        pytest.skip("../shared/golden is not here")
    import_checkpoint(Workspace(tmp_path), SHARED / "tiny.ckpt", SHARED / "tiny-project.yaml")
    gpt = load_gpt(Workspace(tmp_path).model("transformer"), "")[0]
    for name, tensor in transformer().state_dict().items():
        assert torch.equal(gpt.state_dict()[name], tensor)


def single_stage(path: Path, extra: dict[str, Any]) -> Path:
    state = dict(painting_codes().state_dict())
    state["loss.perceptual_loss.net.slice1.0.weight"] = torch.zeros(2)
    state["loss.discriminator.main.0.weight"] = torch.zeros(3)
    state["colorize"] = torch.zeros(3, 182, 1, 1)
    torch.save({"state_dict": state, **extra}, path)
    params = {
        "embed_dim": 32,
        "n_embed": 64,
        "ddconfig": {
            "double_z": False, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 1, 1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
        },
    }  # fmt: skip
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": {"target": "os.system", "params": params}}))
    return path


def test_a_single_stage_comes_in_without_its_losses(tmp_path: Path) -> None:
    path = single_stage(tmp_path / "stage.ckpt", {"epoch": 3, "optimizer_states": [{"state": {}}]})
    result = import_checkpoint(Workspace(tmp_path), path, path.with_suffix(".yaml"), "painting")
    assert list(result.models) == ["painting-codes"]
    model, found = load_vqgan(Workspace(tmp_path).model("painting-codes"), "")
    assert model.config == PAINTING_SIZES
    assert found.config["source"] == "imported from stage.ckpt"


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calls(os.system, "touch pwned"), r"posix\.system"),
        (Calls(eval, "open('pwned', 'w')"), r"\S+\.eval"),
        (Calls(getattr, "a", "upper"), r"\S+\.getattr"),
        (Calls(pickle.loads, b"cos\nsystem\n(S'touch pwned'\ntR."), r"\S+\.loads"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_something_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Calls, name: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": call}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"wants to call {name}"):
        read_state_dict(path)
    assert not (tmp_path / "pwned").exists()


def test_classes_of_a_training_become_inert(tmp_path: Path) -> None:
    path = tmp_path / "numpy.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "best": np.float64(3.0), "at": Path("x")}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut"])
def test_damaged_checkpoints_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint") as caught:
        read_state_dict(path)
    assert "\n" not in caught.value.message


def test_other_sizes_name_the_tensor(exported: Path, tmp_path: Path) -> None:
    table = yaml.safe_load(exported.with_suffix(".yaml").read_text())
    table["model"]["params"]["transformer_config"]["params"]["n_layer"] = 3
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(table))
    workspace = Workspace(tmp_path / "new")
    with pytest.raises(UserError, match=r"has no blocks\.2\.attn\.key\.bias"):
        import_checkpoint(workspace, exported, tmp_path / "other.yaml")
    assert not workspace.root.exists()  # nothing was taken in halfway


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "not a taming-transformers config"),
        ("model: {}", "'params'"),
        ("!!python/object/apply:os.system ['x']", "not a"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=line):
        read_params(tmp_path / "c.yaml")


def test_sizes_survive_the_yaml(exported: Path) -> None:
    from generate.taming import gpt_config, vqgan_config

    params = read_params(exported.with_suffix(".yaml"))
    assert vqgan_config(params["first_stage_config"]["params"]) == PAINTING_SIZES
    assert vqgan_config(params["cond_stage_config"]["params"]) == MASK_SIZES
    assert gpt_config(params["transformer_config"]["params"]) == GPT_SIZES
