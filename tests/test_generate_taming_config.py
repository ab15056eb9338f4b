"""The YAML beside a taming-transformers checkpoint: what we can build of it, and one line for what we cannot."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_models import GPT_SIZES, MASK_SIZES, PAINTING_SIZES

from annotate.errors import UserError
from generate.taming_config import net2net_yaml, parts, read_params, vqgan_yaml


def whole() -> dict[str, Any]:
    """Params of a whole Net2Net."""
    params: dict[str, Any] = net2net_yaml(PAINTING_SIZES, MASK_SIZES, GPT_SIZES)["params"]
    return params


def test_sizes_survive_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"params": whole()}}))
    found = parts(read_params(tmp_path / "c.yaml"), "painting", tmp_path)
    assert [sizes for _, _, sizes in found] == [PAINTING_SIZES, MASK_SIZES, GPT_SIZES]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "not a taming-transformers config"),
        ("model: {}", "'params'"),
        ("!!python/object/apply:os.system ['x']", "not a"),
        ("[" * 5_000, "not a taming-transformers config"),
        ("model: 2001-99-99", "not a taming-transformers config"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=line):
        read_params(tmp_path / "c.yaml")


def gpt(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda p: p["transformer_config"]["params"].update({key: value})


def painting(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda p: p["first_stage_config"]["params"]["ddconfig"].update({key: value})


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
        (lambda p: p.update(permuter_config={"target": "a.ZCurve"}), "permuter 'a.ZCurve'"),
        (gpt("n_layer", "many"), "transformer_config: n_layer 'many': not a positive whole number"),
        (gpt("n_head", 0), "n_head 0: not a positive"),
        (gpt("n_head", -4), "n_head -4: not a positive"),
        (gpt("n_head", 5), "n_embd 64: not a multiple of n_head 5"),
        (gpt("block_size", math.inf), "block_size inf: not a positive"),
        (gpt("vocab_size", -1), "vocab_size -1: not a positive"),
        (gpt("vocab_size", 63), "vocab_size 63: smaller than n_embed 64 of first_stage_config"),
        (gpt("attn_pdrop", 3.0), "attn_pdrop 3.0: not a number from 0 to 1"),
        (painting("ch", None), "first_stage_config: ch None: not a positive"),
        (painting("ch", 48), "ch 48: not a multiple of 32"),
        (painting("ch_mult", []), "ch_mult []: not a list of"),
        (painting("ch_mult", [1, 2]), "ch_mult: 2 levels in first_stage_config, 5 in cond_stage_config"),
        (painting("ch_mult", 2), "ch_mult 2: not a list of"),
        (painting("attn_resolutions", ["all"]), "attn_resolutions 'all': not a positive"),
        (painting("dropout", 3.0), "dropout 3.0: not a number from 0 to 1"),
        (
            lambda p: p["first_stage_config"]["params"].update(n_embed="many"),
            "n_embed 'many': not a positive",
        ),
        (
            lambda p: p["first_stage_config"]["params"].update(n_embed=10**12),
            "n_embed: larger than 2147483648",
        ),
        (lambda p: p["first_stage_config"]["params"].update(ddconfig=None), "ddconfig None: not a mapping"),
        (lambda p: p.update(downsample_cond_size=256), "downsample_cond_size: 256 is not supported"),
        (
            lambda p: p.update(cond_stage_config={"target": "a.CoordStage", "params": {"n_embed": 64}}),
            "cond_stage_config is 'a.CoordStage': only models conditioned on a mask's VQGAN",
        ),
        (
            lambda p: p.update(cond_stage_config=p["first_stage_config"]),
            "cond_stage_config: in_channels 3 are a painting's",
        ),
        (
            lambda p: p.update(first_stage_config=p["cond_stage_config"]),
            "first_stage_config: in_channels 182 are not a painting's",
        ),
        (lambda p: p["transformer_config"]["params"].pop("n_layer"), "'n_layer' is missing"),
        (lambda p: p["cond_stage_config"].update(params=None), "params is None, not a mapping"),
    ],
)
def test_a_config_that_we_cannot_build_is_refused(
    change: Callable[[dict[str, Any]], object], line: str
) -> None:
    params = whole()
    change(params)
    with pytest.raises(UserError, match=rf"c\.yaml: .*{re.escape(line)}"):
        parts(params, "painting", Path("c.yaml"))


def test_a_value_that_aliases_make_huge_is_quoted_short() -> None:
    huge: list[Any] = ["x" * 100] * 10
    for _ in range(7):
        huge = [huge] * 10  # a gigabyte, were it written out
    for change in ({"first_stage_config": huge}, {"permuter_config": {"target": huge}}):
        with pytest.raises(UserError) as caught:
            parts(whole() | change, "painting", Path("c.yaml"))
        assert len(caught.value.message) < 2000


def test_a_single_vqgan_is_taken_for_what_it_is() -> None:
    for stage, sizes in (("painting", PAINTING_SIZES), ("mask", MASK_SIZES)):
        params = vqgan_yaml(sizes, "image")["params"]
        assert parts(params, stage, Path("c.yaml")) == [(f"{stage}-codes", "", sizes)]
    with pytest.raises(UserError, match="in_channels 182 are a mask's; add --stage mask"):
        parts(vqgan_yaml(MASK_SIZES, "image")["params"], "painting", Path("c.yaml"))
    with pytest.raises(UserError, match="in_channels 3 are a painting's; leave out --stage mask"):
        parts(vqgan_yaml(PAINTING_SIZES, "image")["params"], "mask", Path("c.yaml"))
