"""taming-transformers checkpoints come in and go out; a pickle that would call something is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
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
from lightning.pytorch.callbacks import ModelCheckpoint

from annotate.errors import UserError
from annotate.workspace import Workspace
from cli import main
from generate.checkpoint import load_gpt, load_vqgan, save_model
from generate.taming import export_checkpoint, import_checkpoint, read_params


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


def config_with(exported: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    table = yaml.safe_load(exported.with_suffix(".yaml").read_text())
    change(table["model"]["params"])
    path.write_text(yaml.safe_dump(table))
    return path


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda p: p["transformer_config"]["params"].update(n_unmasked=256),
            "n_unmasked: 256 is not supported",
        ),
        (
            lambda p: p["transformer_config"]["params"].update(block_size=300),
            "block_size 300 is not twice a square",
        ),
        (
            lambda p: p["first_stage_config"]["params"]["ddconfig"].update(double_z=True),
            "double_z: True is not",
        ),
        (lambda p: p["first_stage_config"]["params"].update(remap="used.npy"), "remap: 'used.npy' is not"),
        (lambda p: p.update(cond_stage_config="__is_unconditional__"), "only models conditioned on a mask"),
        (lambda p: p.update(permuter_config={"target": "a.ZCurve"}), "permuter a.ZCurve"),
        (lambda p: p["transformer_config"]["params"].update(n_layer="many"), "'many'"),
        (lambda p: p["transformer_config"]["params"].pop("n_layer"), "'n_layer' is missing"),
        (lambda p: p["cond_stage_config"].update(params=None), "params is None, not a mapping"),
    ],
)
def test_a_config_that_we_cannot_build_is_refused(
    exported: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], line: str
) -> None:
    config = config_with(exported, tmp_path / "c.yaml", change)
    with pytest.raises(UserError, match=re.escape(line)):
        import_checkpoint(Workspace(tmp_path / "new"), exported, config)
    assert not (tmp_path / "new").exists()


def test_settings_without_effect_on_the_numbers_are_fine(exported: Path, tmp_path: Path) -> None:
    def change(params: dict[str, Any]) -> None:
        params |= {
            "pkeep": 0.9,
            "permuter_config": {"target": "taming.modules.transformer.permuter.Identity"},
        }
        params["transformer_config"]["params"] |= {"embd_pdrop": 0.1, "n_unmasked": 0}

    import_checkpoint(Workspace(tmp_path), exported, config_with(exported, tmp_path / "c.yaml", change))
    assert load_gpt(Workspace(tmp_path).model("transformer"), "")[0].config.dropout == 0.1


def test_a_masks_vqgan_is_not_taken_for_a_paintings(exported: Path, tmp_path: Path) -> None:
    def only_the_mask(params: dict[str, Any]) -> None:
        inner = params["cond_stage_config"]["params"]
        params.clear()
        params.update(inner)

    config = config_with(exported, tmp_path / "c.yaml", only_the_mask)
    state = mask_codes().state_dict()
    ema = {"quantize.embedding.cluster_size": torch.ones(64), "model_ema.decay": torch.tensor(0.9)}
    torch.save({"state_dict": {**state, **ema}}, tmp_path / "mask.ckpt")
    workspace = Workspace(tmp_path / "new")
    with pytest.raises(UserError, match="in_channels 182 are a mask's; add --stage mask"):
        import_checkpoint(workspace, tmp_path / "mask.ckpt", config)
    import_checkpoint(workspace, tmp_path / "mask.ckpt", config, "mask")
    taken = load_vqgan(workspace.model("mask-codes"), "")[0].state_dict()
    assert taken.keys() == state.keys()
    assert all(torch.equal(taken[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("stage", ["painting", "mask"])
def test_a_single_stage_goes_out_and_comes_back(trained: Workspace, tmp_path: Path, stage: str) -> None:
    out, words = tmp_path / "stage.ckpt", ["--stage", stage]
    result = CliRunner().invoke(main, ["generate", "export", str(out), "-w", str(trained.root), *words])
    assert result.exit_code == 0, result.output
    wanted = load_vqgan(trained.model(f"{stage}-codes"), "")[0]
    assert torch.load(out, weights_only=True)["state_dict"].keys() == wanted.state_dict().keys()
    config = ["--config", str(out.with_suffix(".yaml"))]
    result = CliRunner().invoke(
        main, ["generate", "import", str(out), *config, "-w", str(tmp_path / "new"), *words]
    )
    assert result.exit_code == 0, result.output
    back = load_vqgan(Workspace(tmp_path / "new").model(f"{stage}-codes"), "")[0]
    assert back.config == wanted.config
    assert all(torch.equal(one, wanted.state_dict()[name]) for name, one in back.state_dict().items())


def test_a_whole_one_comes_in_with_its_losses_colours_and_averages(
    trained: Workspace, exported: Path, tmp_path: Path
) -> None:
    loaded = torch.load(exported, weights_only=True)
    extra = {
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3),
        "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1),
        "first_stage_model.quantize.embedding.embed_avg": torch.zeros(2),
        "cond_stage_model.colorize": torch.zeros(3, 182, 1, 1),
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.transformerhead": torch.zeros(64, 64),
    }
    torch.save({**loaded, "state_dict": loaded["state_dict"] | extra}, tmp_path / "full.ckpt")
    import_checkpoint(Workspace(tmp_path / "new"), tmp_path / "full.ckpt", exported.with_suffix(".yaml"))
    assert same_models(trained, Workspace(tmp_path / "new"))


def test_what_lightning_2_writes_comes_in(exported: Path, tmp_path: Path) -> None:
    """A checkpoint of Lightning's own trainer, with hyperparameters, callbacks and an optimizer's state."""

    class Stage(L.LightningModule):
        def __init__(self, ddconfig: dict[str, Any], monitor: Path) -> None:
            super().__init__()
            self.save_hyperparameters()
            codes = painting_codes()
            self.encoder, self.decoder, self.quantize = codes.encoder, codes.decoder, codes.quantize
            self.quant_conv, self.post_quant_conv = codes.quant_conv, codes.post_quant_conv

        def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
            return torch.as_tensor(self.quant_conv(batch).square().mean() * 0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.0)

    path = single_stage(tmp_path / "stage.ckpt", {})  # for its YAML
    stage = Stage({"ch": 32}, Path("val/loss"))
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(tmp_path / "kept", save_last=True)],
    )  # fmt: skip
    loader: Any = torch.utils.data.DataLoader([torch.zeros(32, 4, 4)])  # type: ignore[arg-type]
    trainer.fit(stage, loader)
    last = tmp_path / "kept" / "last.ckpt"
    assert "pytorch-lightning_version" in torch.load(last, weights_only=False)
    import_checkpoint(Workspace(tmp_path / "new"), last, path.with_suffix(".yaml"))
    taken = load_vqgan(Workspace(tmp_path / "new").model("painting-codes"), "")[0].state_dict()
    assert all(torch.equal(one, painting_codes().state_dict()[name]) for name, one in taken.items())
