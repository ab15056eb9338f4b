"""The generator on the painter benchmark, preset `small`: what each choice for few paintings is worth.

48 scenes of the demo's painter with their true masks, 40 to learn from and 8 held out; two seeds of every variant.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from annotate.files import read_json, write_json, write_whole
from annotate.masks import Encoding, read_mask, shift, write_mask
from annotate.paintings import scan, write_index
from annotate.progress import note
from annotate.workspace import Workspace
from demo.painter import paint_folder
from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER

FOLDER = Path(os.environ.get("BENCH_HAND", Path(tempfile.gettempdir()) / "bench-hand"))  # killed, it goes on
SCENES, HELD_OUT, SEEDS = 48, 8, (0, 1)
# shorter than the preset, so that twenty trainings fit an hour
SHORT_CODES = replace(PAINTING_CODES["small"], steps=150, start_codebook=50, save_every=150)
SHORT_TRANSFORMER = replace(TRANSFORMER["small"], steps=100, save_every=25)
CODES: Mapping[str, Mapping[str, Any]] = {
    "as the preset": {},
    "no k-means start": {"start_codebook": 0},
    "no revival of dead codes": {"revive_every": 0},
    "neither": {"start_codebook": 0, "revive_every": 0},
}
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "as the preset": {},
    "no aligned start": {"aligned_start": False},
    "no token dropout": {"token_dropout": 0.0},
    "no open masks": {"open_all": 0.0, "open_part": 0.0},
}


def benchmark(root: Path) -> Workspace:
    """A workspace of painted scenes and their true masks, the last ones held out."""
    workspace = Workspace(root)
    if workspace.index_file.exists():
        return workspace
    keys = paint_folder(root / "paintings", root / "truth", SCENES)
    for key in keys:
        raw = read_mask(root / "truth" / f"{key}.png", Encoding.RAW)
        write_mask(workspace.mask("shifted", key), shift(raw), Encoding.SHIFTED)
    lists = {"train": keys[:-HELD_OUT], "val": keys[-HELD_OUT:]}
    for name, some in lists.items():
        write_whole(workspace.masks("shifted") / f"{name}.txt", "".join(f"{key}.png\n" for key in some))
    write_index(workspace, scan(root / "paintings", workspace).paintings)
    return workspace


def once(path: Path, work: Callable[[], Any]) -> Any:
    """The result of `work`, kept in a JSON file: what is done is not done again."""
    if not path.exists():
        note(f"-- {path.stem}")
        write_json(path, work())
    return read_json(path)


def trained_codes(seed: int, variant: str) -> dict[str, Any]:
    from generate.train_codes import train_painting_codes

    workspace = _copy(f"codes-{variant}-{seed}", ())
    config = replace(SHORT_CODES, seed=seed, **CODES[variant])
    return asdict(train_painting_codes(workspace, config, "cpu"))


def base() -> Workspace:
    """The benchmark with both codebooks of the preset."""
    from generate.train_codes import train_mask_codes, train_painting_codes

    workspace = benchmark(FOLDER / "base")
    once(
        FOLDER / "base-painting.json",
        lambda: asdict(train_painting_codes(workspace, PAINTING_CODES["small"], "cpu")),
    )
    once(FOLDER / "base-mask.json", lambda: asdict(train_mask_codes(workspace, MASK_CODES["small"], "cpu")))
    return workspace


@cache
def benchmark_tokens() -> list[Any]:
    """The benchmark cut to tokens, once for all variants."""
    from generate.checkpoint import load_vqgan
    from generate.data import load_masks, load_pictures
    from generate.tokens import cut_to_tokens

    workspace, config = base(), SHORT_TRANSFORMER
    painting, mask = (load_vqgan(workspace.model(f"{name}-codes"), "")[0] for name in ("painting", "mask"))
    pictures = {one.key: one for one in load_pictures(workspace, config.smallest_side, config.crop)}
    masks = load_masks(workspace, config.smallest_side, config.crop, mask.config.in_channels)
    return cut_to_tokens([(pictures[one.key], one) for one in masks], painting, mask, config, "cpu")


def trained_transformer(seed: int, variant: str) -> dict[str, Any]:
    import generate.train_transformer
    from generate.train_transformer import train_transformer

    setattr(generate.train_transformer, "cut_to_tokens", lambda *_: benchmark_tokens())  # noqa: B010
    workspace = _copy(f"transformer-{variant}-{seed}", ("painting-codes", "mask-codes"))
    config = replace(SHORT_TRANSFORMER, seed=seed, **TRANSFORMERS[variant])
    result = asdict(train_transformer(workspace, config, "cpu"))
    history = (workspace.report("generate-train-transformer") or {})["history"]
    return result | {"held_out_curve": [one for one in history if "held_out" in one]}


def run() -> list[dict[str, object]]:
    """Train every variant that is not trained yet (about 40 minutes of one core), and table all."""
    base()
    rows: list[dict[str, object]] = []
    for variant in TRANSFORMERS:
        found = [
            once(FOLDER / f"transformer-{variant}-{seed}.json", partial(trained_transformer, seed, variant))
            for seed in SEEDS
        ]
        bits = [float(one["held_out_bits_per_token"]) for one in found]
        rows.append({"stage": "transformer", "variant": variant, "held-out bits a token": _both(bits)})
    for variant in CODES:
        found = [
            once(FOLDER / f"codes-{variant}-{seed}.json", partial(trained_codes, seed, variant))
            for seed in SEEDS
        ]
        figures = {
            name: _both([float(one[name]) for one in found]) for name in ("loss", "used", "perplexity")
        }
        text = "L1 {loss}, {used} of 128 rows, perplexity {perplexity}".format(**figures)
        rows.append({"stage": "painting codes", "variant": variant, "held-out bits a token": text})
    return rows


def _both(values: list[float]) -> str:
    return " / ".join(f"{one:.3g}" for one in values)


def _copy(name: str, models: tuple[str, ...]) -> Workspace:
    """A workspace of its own that shares the benchmark's paintings, masks and the models named."""
    source, target = Workspace(FOLDER / "base"), Workspace(FOLDER / name.replace(" ", "-"))
    target.root.mkdir(parents=True, exist_ok=True)
    for part in ("paintings", "truth", "masks"):
        if not (target.root / part).exists():
            (target.root / part).symlink_to(source.root / part)
    shutil.copyfile(source.index_file, target.index_file)
    for model in models:
        shutil.copytree(source.model(model), target.model(model), dirs_exist_ok=True)
    return target
