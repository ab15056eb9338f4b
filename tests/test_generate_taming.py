"""taming-transformers checkpoints come in and go out; a pickle that would call something is refused by name."""

from __future__ import annotations

import json
import math
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
from generate.taming import export_checkpoint, import_checkpoint


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
    with pytest.raises(UserError, match=r"n_layer 3: the checkpoint has no transformer\.blocks\.2"):
        import_checkpoint(workspace, exported, tmp_path / "other.yaml")
    assert not workspace.root.exists()  # nothing was taken in halfway


def config_with(exported: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    table = yaml.safe_load(exported.with_suffix(".yaml").read_text())
    change(table["model"]["params"])
    path.write_text(yaml.safe_dump(table))
    return path


@pytest.mark.parametrize(
    ("part", "sizes", "line"),
    [
        ("transformer", {"n_layer": 10**9}, "n_layer 1000000000: the checkpoint has no transformer.blocks.9"),
        (
            "transformer",
            {"vocab_size": 65},
            "vocab_size 65, n_embd 64: transformer.tok_emb.weight is (64, 64)",
        ),
        ("transformer", {"block_size": 18}, "block_size 18, n_embd 64: transformer.pos_emb is (1, 512, 64)"),
        ("first_stage", {"n_embed": 60}, "n_embed 60, embed_dim 32: first_stage_model.quantize.embedding"),
        ("first_stage", {"ch": 32 * 10**7}, "ch 320000000, in_channels 3: first_stage_model.encoder.conv_in"),
        (
            "first_stage",
            {"num_res_blocks": 10**9},
            "num_res_blocks 1000000000: the checkpoint has no first_st",
        ),
        ("cond_stage", {"ch_mult": [1, 1, 1, 1, 10**7]}, "ch 32, ch_mult [1, 1, 1, 1, 10000000], num_res"),
    ],
)
def test_sizes_that_the_checkpoint_has_not_are_refused_before_memory_is_taken(
    exported: Path, tmp_path: Path, part: str, sizes: dict[str, Any], line: str
) -> None:
    def change(params: dict[str, Any]) -> None:
        inner = params[f"{part}_config"]["params"]
        for key, value in sizes.items():
            (inner if key in inner else inner["ddconfig"])[key] = value

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


def test_a_checkpoint_with_the_yaml_of_another_kind_is_named(exported: Path, tmp_path: Path) -> None:
    stage = single_stage(tmp_path / "stage.ckpt", {})
    with pytest.raises(
        UserError, match=r"a whole Net2Net, the YAML a single VQGAN's; give its project\.yaml"
    ):
        import_checkpoint(Workspace(tmp_path), exported, stage.with_suffix(".yaml"))
    with pytest.raises(UserError, match="not a whole Net2Net, as the YAML is"):
        import_checkpoint(Workspace(tmp_path), stage, exported.with_suffix(".yaml"))
    state = torch.load(exported, weights_only=True)["state_dict"]
    for path, kept, line in (
        (tmp_path / "extra.ckpt", state | {"transformer.extra": torch.zeros(1)}, "has extra, for which"),
        (
            tmp_path / "less.ckpt",
            {name: one for name, one in state.items() if not name.startswith("cond_")},
            r"has no cond_stage_model\.\*",
        ),
    ):
        torch.save({"state_dict": kept}, path)
        with pytest.raises(UserError, match=line):
            import_checkpoint(Workspace(tmp_path), path, exported.with_suffix(".yaml"))


def test_after_a_single_stage_it_says_what_is_missing(tmp_path: Path) -> None:
    path = single_stage(tmp_path / "stage.ckpt", {})
    words = ["generate", "import", str(path), "--config", str(path.with_suffix(".yaml")), "-w", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert "still missing: mask-codes, transformer" in result.stdout
    assert "next: tool generate train mask" in result.stdout
    assert "sample" not in result.stdout


def other_generator(root: Path) -> Workspace:
    """A workspace with trained painting codes, their figures, and a transformer whose training was killed."""
    workspace, codes = Workspace(root), painting_codes()
    torch.nn.init.ones_(codes.quant_conv.weight)
    save_model(workspace.model("painting-codes"), codes, {"figures": {"loss": 1.0}})
    workspace.model("transformer").mkdir()
    (workspace.model("transformer") / "training.ckpt").write_bytes(b"state")
    for name in ("painting", "mask", "transformer"):
        workspace.save_report(f"generate-train-{name}", {"loss": 1.0})
    return workspace


def test_models_that_are_there_are_not_lost_unasked(
    trained: Workspace, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = other_generator(tmp_path)
    before = (workspace.model("painting-codes") / "model.safetensors").read_bytes()
    with pytest.raises(
        UserError, match=r"painting-codes, .*transformer: another model is there already; add --replace"
    ):
        import_checkpoint(workspace, exported, exported.with_suffix(".yaml"))
    assert (workspace.model("painting-codes") / "model.safetensors").read_bytes() == before
    assert (workspace.model("transformer") / "training.ckpt").exists()
    assert not workspace.model("mask-codes").exists()
    result = import_checkpoint(workspace, exported, exported.with_suffix(".yaml"), replace=True)
    assert result.replaced == ("painting-codes", "transformer")
    assert "replaced what the workspace had as painting-codes, transformer" in capsys.readouterr().err
    assert same_models(trained, workspace)
    assert not list(workspace.root.rglob("training.ckpt"))
    assert not list(workspace.reports.glob("generate-train-*"))


def test_the_same_import_again_changes_nothing(trained: Workspace, exported: Path) -> None:
    trained.save_report("generate-train-painting", {"loss": 1.0})
    before = {path: path.stat().st_mtime_ns for path in trained.root.rglob("model.safetensors")}
    result = import_checkpoint(trained, exported, exported.with_suffix(".yaml"))
    assert (len(result.models), result.replaced, result.missing) == (3, (), ())
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert trained.report("generate-train-painting") == {"loss": 1.0}


@pytest.mark.parametrize("name", ["out.yaml", "out.YML"])
def test_a_checkpoint_is_not_named_like_its_yaml(trained: Workspace, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: .*give a name such as last\.ckpt"):
        export_checkpoint(trained, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_foreign_yaml_beside_is_not_overwritten(trained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "out.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"out\.yaml: another file is there already"):
        export_checkpoint(trained, tmp_path / "out.ckpt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "out.yaml").unlink()
    for _ in range(2):  # its own is no obstacle
        export_checkpoint(trained, tmp_path / "out.ckpt")


def test_weights_that_are_not_numbers_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = single_stage(tmp_path / "stage.ckpt", {})
    loaded = torch.load(path, weights_only=True)
    loaded["state_dict"]["decoder.conv_out.bias"][1] = math.nan
    torch.save(loaded, path)
    import_checkpoint(Workspace(tmp_path), path, path.with_suffix(".yaml"))
    assert "painting-codes: decoder.conv_out.bias: NaN or infinite weights" in capsys.readouterr().err
