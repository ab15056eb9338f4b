"""taming-transformers' YAML, which says how its models are built: read into our sizes, and written from them."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from annotate.errors import UserError
from generate.config import GPTConfig, VQGANConfig

STAGES = {"painting": "painting-codes", "mask": "mask-codes"}
Sizes = TypeVar("Sizes", VQGANConfig, GPTConfig)
LARGEST = 2**31  # of a size; more is nobody's model
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def read_params(config: Path) -> dict[str, Any]:
    """`model.params` of a taming-transformers YAML; no `target` in it is ever imported.

    Raises:
        UserError: missing, not YAML, or without that key.
    """
    try:
        table = yaml.safe_load(config.read_text(encoding="utf-8"))
        params = table["model"]["params"]
        if not isinstance(params, dict):
            raise TypeError("model.params is not a mapping")
    except OSError as error:
        raise UserError(f"{config}: cannot be read ({error.strerror})") from error
    # ValueError: text that is not UTF-8, and numbers and dates that Python has no value for
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        line = str(error).replace("\n", " ")[:200]
        raise UserError(
            f"{config}: not a taming-transformers config ({line}); give the project.yaml"
        ) from error
    return params


def parts(
    params: Mapping[str, Any], stage: str, config: Path
) -> list[tuple[str, str, VQGANConfig | GPTConfig]]:
    """(model of the workspace, prefix in the state dict, sizes) of each part that the config describes.

    Raises:
        UserError: a key is missing, or has a value that we cannot build; the line names it.
    """
    try:
        if "transformer_config" not in params:
            return [(STAGES[stage], "", _single(params, stage))]
        _refuse(params, {"downsample_cond_size": -1})
        permuter = params.get("permuter_config") or {}
        target = permuter.get("target", "Identity")
        if not (isinstance(target, str) and target.endswith("Identity")):
            raise ValueError(f"permuter {_quoted(target)} orders tokens in a way that is not supported")
        painting = _part(params, "first_stage_config", vqgan_config)
        mask = _part(params, "cond_stage_config", vqgan_config)
        gpt = _part(params, "transformer_config", gpt_config)
        _check_whole(painting, mask, gpt)
    except KeyError as error:
        raise UserError(f"{config}: {error} is missing under model.params; give the project.yaml") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{config}: {error}") from error
    return [
        ("painting-codes", "first_stage_model.", painting),
        ("mask-codes", "cond_stage_model.", mask),
        ("transformer", "transformer.", gpt),
    ]


def vqgan_config(params: Mapping[str, Any]) -> VQGANConfig:
    """A VQModel's params as our sizes. Raises KeyError for a missing one, ValueError for an unsupported one."""
    sizes = params["ddconfig"]
    if not isinstance(sizes, dict):
        raise ValueError(f"ddconfig {_quoted(sizes)}: not a mapping")
    _refuse(params, {"remap": None})
    _refuse(sizes, {"double_z": False, "attn_type": "vanilla", "resamp_with_conv": True, "tanh_out": False})
    channels = _whole(sizes, "ch")
    if channels % 32:
        raise ValueError(f"ch {channels}: not a multiple of 32, which the group norms need")
    return VQGANConfig(
        in_channels=_whole(sizes, "in_channels"),
        out_channels=_whole(sizes, "out_ch"),
        channels=channels,
        channel_multipliers=_wholes(sizes, "ch_mult", least=1),
        residual_blocks=_whole(sizes, "num_res_blocks"),
        attention_resolutions=_wholes(sizes, "attn_resolutions"),
        resolution=_whole(sizes, "resolution"),
        z_channels=_whole(sizes, "z_channels"),
        embed_dim=_whole(params, "embed_dim"),
        codebook_size=_whole(params, "n_embed"),
        dropout=_share(sizes, "dropout"),
    )


def gpt_config(params: Mapping[str, Any]) -> GPTConfig:
    """A GPT's params as our sizes. Raises KeyError for a missing one, ValueError for an unsupported one."""
    _refuse(params, {"n_unmasked": 0})
    heads, width = _whole(params, "n_head"), _whole(params, "n_embd")
    if width % heads:
        raise ValueError(f"n_embd {width}: not a multiple of n_head {heads}")
    sizes = GPTConfig(
        vocab_size=_whole(params, "vocab_size"),
        block_size=_whole(params, "block_size"),
        layers=_whole(params, "n_layer"),
        heads=heads,
        width=width,
        dropout=max(_share(params, name) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")),
    )
    if sizes.window < 2:  # a block that is not twice a square is refused by `window` itself
        raise ValueError(f"block_size {sizes.block_size} is too small")
    return sizes


def landmarks(sizes: VQGANConfig | GPTConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(keys of the YAML, tensor, its shape) of the few tensors from which all other shapes follow."""
    if isinstance(sizes, GPTConfig):
        width = f"n_embd {sizes.width}"
        yield f"vocab_size {sizes.vocab_size}, {width}", "tok_emb.weight", (sizes.vocab_size, sizes.width)
        yield f"block_size {sizes.block_size}, {width}", "pos_emb", (1, sizes.block_size, sizes.width)
        last = f"blocks.{sizes.layers - 1}.attn.key.weight"
        yield f"n_layer {sizes.layers}", last, (sizes.width, sizes.width)
        return
    ch, z, row, levels = sizes.channels, sizes.z_channels, sizes.embed_dim, sizes.channel_multipliers
    keys = f"ch {ch}, in_channels {sizes.in_channels}"
    yield keys, "encoder.conv_in.weight", (ch, sizes.in_channels, 3, 3)
    for number, multiplier in enumerate(levels):
        wide, block = ch * multiplier, sizes.residual_blocks - 1
        keys = f"ch {ch}, ch_mult {_quoted(list(levels))}, num_res_blocks {sizes.residual_blocks}"
        yield keys, f"encoder.down.{number}.block.{block}.conv2.weight", (wide, wide, 3, 3)
    keys = f"ch {ch}, out_ch {sizes.out_channels}"
    yield keys, "decoder.conv_out.weight", (sizes.out_channels, ch * levels[0], 3, 3)
    yield f"z_channels {z}, embed_dim {row}", "quant_conv.weight", (row, z, 1, 1)
    keys = f"n_embed {sizes.codebook_size}, embed_dim {row}"
    yield keys, "quantize.embedding.weight", (sizes.codebook_size, row)


def _single(params: Mapping[str, Any], stage: str) -> VQGANConfig:
    sizes = vqgan_config(params)
    if stage == "painting" and sizes.in_channels != 3:
        raise ValueError(f"in_channels {sizes.in_channels} are a mask's; add --stage mask")
    if stage == "mask" and sizes.in_channels == 3:
        raise ValueError("in_channels 3 are a painting's; leave out --stage mask")
    return sizes


def _part(params: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any]], Sizes]) -> Sizes:
    """One part's sizes; what is wrong with them names the part."""
    inner = _inner(params, name)
    try:
        return read(inner)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_whole(painting: VQGANConfig, mask: VQGANConfig, gpt: GPTConfig) -> None:
    """Refuse three models that cannot work together."""
    if painting.in_channels != 3:
        raise ValueError(f"first_stage_config: in_channels {painting.in_channels} are not a painting's 3")
    if mask.in_channels == 3:
        raise ValueError("cond_stage_config: in_channels 3 are a painting's, and a mask's VQGAN is wanted")
    for name, codes in (("first_stage_config", painting), ("cond_stage_config", mask)):
        if codes.codebook_size > gpt.vocab_size:
            raise ValueError(
                f"vocab_size {gpt.vocab_size}: smaller than n_embed {codes.codebook_size} of {name}"
            )
    if painting.downsampling != mask.downsampling:
        first, second = (len(one.channel_multipliers) for one in (painting, mask))
        raise ValueError(
            f"ch_mult: {first} levels in first_stage_config, {second} in cond_stage_config; they must be as many"
        )


def _inner(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """`params` of one part; a part that is only a word (`__is_unconditional__`) has none."""
    part = params[name]
    if not isinstance(part, dict):
        raise ValueError(
            f"{name} is {_quoted(part)}: only models conditioned on a mask's VQGAN are supported"
        )
    inner = part["params"]
    if not isinstance(inner, dict):
        raise ValueError(f"{name}.params is {_quoted(inner)}, not a mapping")
    if name == "cond_stage_config" and "ddconfig" not in inner:
        target = _quoted(part.get("target"))
        raise ValueError(f"{name} is {target}: only models conditioned on a mask's VQGAN are supported")
    return inner


def _refuse(params: Mapping[str, Any], known: Mapping[str, object]) -> None:
    """Settings that would change the numbers, and that we have only one value of."""
    for name, value in known.items():
        if params.get(name, value) != value:
            raise ValueError(f"{name}: {_quoted(params[name])} is not supported, only {value!r}")


def _whole(params: Mapping[str, Any], name: str) -> int:
    return _positive(name, params[name])


def _wholes(params: Mapping[str, Any], name: str, least: int = 0) -> tuple[int, ...]:
    found = params[name]
    if not isinstance(found, list) or len(found) < least:
        raise ValueError(f"{name} {_quoted(found)}: not a list of positive whole numbers")
    return tuple(_positive(name, one) for one in found)


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} {_quoted(value)}: not a positive whole number")
    if value > LARGEST:
        raise ValueError(f"{name}: larger than {LARGEST}")
    return value


def _share(params: Mapping[str, Any], name: str) -> float:
    value = params.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} {_quoted(value)}: not a number from 0 to 1")
    return float(value)


def _quoted(value: object) -> str:
    """A value of the YAML for an error line, shortened: aliases make megabytes out of ten lines."""
    return _SHORT.repr(value)


def net2net_yaml(painting: VQGANConfig, mask: VQGANConfig, gpt: GPTConfig) -> dict[str, Any]:
    """`model` of a whole Net2Net's YAML."""
    sizes = {
        "vocab_size": gpt.vocab_size,
        "block_size": gpt.block_size,
        "n_layer": gpt.layers,
        "n_head": gpt.heads,
        "n_embd": gpt.width,
    }
    params = {
        "first_stage_key": "image",
        "cond_stage_key": "segmentation",
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": sizes},
        "first_stage_config": vqgan_yaml(painting, "image"),
        "cond_stage_config": vqgan_yaml(mask, "segmentation"),
    }
    target = "taming.models.cond_transformer.Net2NetTransformer"
    return {"base_learning_rate": 4.5e-06, "target": target, "params": params}


def vqgan_yaml(c: VQGANConfig, image_key: str) -> dict[str, Any]:
    """`model` of a single VQGAN's YAML; a stage of a Net2Net's."""
    sizes = {
        "double_z": False,
        "z_channels": c.z_channels,
        "resolution": c.resolution,
        "in_channels": c.in_channels,
        "out_ch": c.out_channels,
        "ch": c.channels,
        "ch_mult": list(c.channel_multipliers),
        "num_res_blocks": c.residual_blocks,
        "attn_resolutions": list(c.attention_resolutions),
        "dropout": c.dropout,
    }
    params = {
        "embed_dim": c.embed_dim,
        "n_embed": c.codebook_size,
        "image_key": image_key,
        "ddconfig": sizes,
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    return {"target": "taming.models.vqgan.VQModel", "params": params}
