"""The generator on the painter benchmark, preset `small`: what each choice for few paintings is worth.

48 scenes of the demo's painter with their true masks, 40 to learn from and 8 held out; two seeds of every variant, one
figure each. All variants are trained alike, and shorter than the preset, for even so all of it takes some three hours of
two cores: 300 steps for the painting codes instead of 1200, 225 for the transformer instead of 450. Each variant differs
from the preset in what its name says. Killed, it goes on; `BENCH_SEEDS=0` and `BENCH_SEEDS=1` can run side by side, with
OMP_NUM_THREADS=1, once the first has trained what both share. On a GPU (`BENCH_DEVICE=cuda`) it is the whole preset, in
float32 as on most CPUs, sampled as the demo samples; `BENCH_VARIANTS` (names, by semicolons) are then a part of the table.

`bits a token`: cross-entropy of the held-out paintings' tokens; variants with other codes have other tokens, so only
those with the same codes compare. `mIoU`: what a DeepLab (README's, on 20 true masks) sees in two new paintings from
each held-out mask, against that mask; `of real`: over what it sees in the real ones. `Wasserstein`: sliced, between the new
paintings and those learnt from, mean over bands. `PSNR`: held-out paintings through the codes and back. `rows used`: of the 128
painting codes, over the paintings learnt from.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from annotate.files import read_json, write_json, write_whole
from annotate.masks import Encoding, read_mask, shift, write_mask
from annotate.paintings import scan, write_index
from annotate.progress import note
from annotate.workspace import Workspace
from demo.flow import LIVELY
from demo.painter import paint_folder
from generate.evaluate_config import EvaluateConfig
from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER
from segment.config import TrainConfig

FOLDER = Path(os.environ.get("BENCH_HAND", Path(tempfile.gettempdir()) / "bench-hand"))  # killed, it goes on
SCENES, HELD_OUT, HAND = 48, 8, 20
SEEDS = tuple(int(one) for one in os.environ.get("BENCH_SEEDS", "0,1").split(","))
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
PAINTING = replace(PAINTING_CODES["small"], steps=300, start_codebook=125, save_every=75)
MASK = replace(MASK_CODES["small"], save_every=75)
TOKENS = replace(TRANSFORMER["small"], steps=225, save_every=75, grid_every=225)
EVALUATE = EvaluateConfig(masks=HELD_OUT, samples=2, perceptual="none")
if DEVICE == "cuda":
    PAINTING = replace(PAINTING_CODES["small"], precision="float32")
    MASK = replace(MASK_CODES["small"], precision="float32")
    TOKENS = replace(TRANSFORMER["small"], precision="float32")
    EVALUATE = replace(EVALUATE, **LIVELY)
WARM_UP = PAINTING.steps // 2
DEEPLAB = TrainConfig(init="none", steps=300, crop=192, smallest_side=0)
PRESET = "as the preset"
CODES: Mapping[str, Mapping[str, Any]] = {
    PRESET: {},
    "no k-means start": {"start_codebook": 0},
    "no revival of dead codes": {"revive_every": 0},
    "no texture loss": {"texture": 0.0},
    "discriminator from the start": {"adversarial": 0.8, "adversarial_start": 0},
    "discriminator after warm-up": {"adversarial": 0.8, "adversarial_start": WARM_UP},
    "the same, augmented": {"adversarial": 0.8, "adversarial_start": WARM_UP, "augment": True},
}
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    PRESET: {},
    "no aligned start": {"aligned_start": False},
    "no token dropout": {"token_dropout": 0.0},
    "no open masks": {"open_all": 0.0, "open_part": 0.0},
}
VARIANTS = os.environ.get("BENCH_VARIANTS", ";".join([*CODES, *TRANSFORMERS])).split(";")


def run() -> list[dict[str, object]]:
    """Train every variant that is not trained yet, and table all."""
    chains = [(PRESET, one) for one in TRANSFORMERS] + [(one, PRESET) for one in CODES if one != PRESET]
    chains = [one for one in chains if _name(*one) in VARIANTS]
    found = {
        (*chain, seed): once(f"chain, {_name(*chain)}, {seed}", partial(chained, *chain, seed))
        for seed in SEEDS
        for chain in chains
    }
    return [_row(_name(*chain), [found[(*chain, seed)] for seed in SEEDS]) for chain in chains]


def once(name: str, work: Callable[[], Any]) -> Any:
    """The result of `work`, kept in a JSON file: what is done is not done again."""
    path = FOLDER / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if not path.exists():
        note(f"-- {name}")
        write_json(path, work())
    return read_json(path)


def base() -> Workspace:
    """A workspace of painted scenes and their true masks, the last ones held out, with DeepLab and mask codes."""
    from generate.train_codes import train_mask_codes
    from segment.train import train

    workspace = Workspace(FOLDER / "base")
    if not workspace.index_file.exists():
        keys = paint_folder(workspace.root / "paintings", workspace.root / "truth", SCENES)
        for number, key in enumerate(keys):
            raw = read_mask(workspace.root / "truth" / f"{key}.png", Encoding.RAW)
            write_mask(workspace.mask("shifted", key), shift(raw), Encoding.SHIFTED)
            if number < HAND:
                write_mask(workspace.mask("hand", key), raw, Encoding.RAW)
        for name, some in {"train": keys[:-HELD_OUT], "val": keys[-HELD_OUT:]}.items():
            text = "".join(f"{key}.png\n" for key in some)
            write_whole(workspace.masks("shifted") / f"{name}.txt", text)
        write_index(workspace, scan(workspace.root / "paintings", workspace).paintings)
    once("deeplab", lambda: asdict(train(workspace, DEEPLAB, DEVICE)))
    once("mask codes", lambda: asdict(train_mask_codes(workspace, MASK, DEVICE)))
    return workspace


def trained_codes(variant: str, seed: int) -> Workspace:
    """A workspace with painting codes of this variant."""
    from generate.train_codes import train_painting_codes

    workspace = _copy(f"codes, {variant}, {seed}", base(), ())
    config = replace(PAINTING, seed=seed, **CODES[variant])
    once(f"codes, {variant}, {seed}", lambda: asdict(train_painting_codes(workspace, config, DEVICE)))
    return workspace


def chained(codes: str, tokens: str, seed: int) -> dict[str, Any]:
    """The figures of a transformer, and of what it paints."""
    from generate.evaluate import evaluate
    from generate.train_transformer import train_transformer

    painting, shared = trained_codes(codes, seed), base()
    workspace = _copy(f"chain, {_name(codes, tokens)}, {seed}", shared, ("mask-codes", "deeplab"))
    shutil.copytree(painting.model("painting-codes"), workspace.model("painting-codes"), dirs_exist_ok=True)
    trained = train_transformer(workspace, replace(TOKENS, seed=seed, **TRANSFORMERS[tokens]), DEVICE)
    evaluate(workspace, EVALUATE, DEVICE)
    return {"kept": trained.steps, **(workspace.report("generate-evaluate") or {})}


def _row(name: str, found: list[dict[str, Any]]) -> dict[str, object]:
    seen = [one["fidelity"]["samples"]["miou"] for one in found]
    real = [one["fidelity"]["paintings"]["miou"] for one in found]
    return {
        "variant": name,
        "bits a token": _each([one["likelihood"]["bits_per_token"] for one in found], 3),
        "mIoU": _each(seen, 3),
        "of real": _each([a / b for a, b in zip(seen, real, strict=True)], 2),
        "Wasserstein": _each([fmean(one["wasserstein"]["new paintings"]) for one in found], 3),
        "PSNR, dB": _each([one["reconstruction"]["psnr"] for one in found], 1),
        "rows used": _each([one["painting_codebook"]["used"] for one in found], 0),
        "steps kept": _each([one["kept"] for one in found], 0),
    }


def _each(values: list[float], digits: int) -> str:
    return ", ".join(f"{one:.{digits}f}" for one in values)


def _name(codes: str, tokens: str) -> str:
    return tokens if codes == PRESET else codes


def _copy(name: str, source: Workspace, models: tuple[str, ...]) -> Workspace:
    """A workspace of its own that shares the source's paintings and masks, with copies of the models named."""
    target = Workspace(FOLDER / name.replace(", ", "-").replace(" ", "-"))
    target.root.mkdir(parents=True, exist_ok=True)
    for part in ("paintings", "truth", "masks"):
        if not (target.root / part).exists():
            (target.root / part).symlink_to(source.root / part)
    shutil.copyfile(source.index_file, target.index_file)
    for model in models:
        shutil.copytree(source.model(model), target.model(model), dirs_exist_ok=True)
    return target
