"""Preset `seed` trained on a GPU for some minutes on the painter's scenes, and measured on scenes it has not seen.

400 scenes of the demo's painter at 460 x 576 pixels with their true masks, 16 of them held out; the trainings see crops of
256 pixels, as the preset says. What departs from the preset is made for minutes instead of days: larger batches, higher
learning rates that fall, k-means start and revival of codes, aligned start and token dropout (docs/bench-hand.md). There are
no weights for the perceptual loss, so paintings are learnt from by L1 and the discriminator. The DeepLab that looks at the
new paintings learns from 100 true masks.

`s` is the whole stage, loading and pictures included. BENCH_SEED_PRESET names a folder for the workspace, BENCH_KEEP one for
what is kept: report, losses, sample grids, pictures. BENCH_STEPS are the steps of the three trainings.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from annotate.files import read_json, write_json, write_whole
from annotate.masks import Encoding, read_mask, shift, unshift, write_mask
from annotate.page import colour
from annotate.paintings import load_painting, read_index, scan, write_index
from annotate.progress import note
from annotate.workspace import Workspace
from generate.evaluate_config import EvaluateConfig
from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER
from generate.sample_config import SampleConfig
from segment.config import TrainConfig

FOLDER = Path(os.environ.get("BENCH_SEED_PRESET", Path(tempfile.gettempdir()) / "bench-seed-preset"))
KEEP = os.environ.get("BENCH_KEEP")
DEVICE = "cuda"
STEPS = [int(one) for one in os.environ.get("BENCH_STEPS", "1500 400 2000").split()]
SCENES, HELD_OUT, HAND, SIZE = 400, 16, 100, (460, 576)
LEARN: dict[str, Any] = {"decay": "cosine", "warmup": 50, "clip": 1.0, "workers": 8}
PAINTING = replace(
    PAINTING_CODES["seed"], **LEARN, steps=STEPS[0], batch=8, lr=3e-4, perceptual="none", detail=1.0,
    start_codebook=STEPS[0] // 5, revive_every=25, adversarial_start=STEPS[0] * 2 // 3, save_every=STEPS[0],
)  # fmt: skip
MASK = replace(
    MASK_CODES["seed"], **LEARN, steps=STEPS[1], batch=8, lr=5e-4, loss="pixel", start_codebook=STEPS[1] // 4,
    revive_every=25, save_every=STEPS[1],
)  # fmt: skip
TOKENS = replace(
    TRANSFORMER["seed"], **LEARN | {"warmup": 100}, steps=STEPS[2], batch=16, lr=3e-4, token_dropout=0.3, dropout=0.1,
    aligned_start=True, save_every=max(1, STEPS[2] // 8), grid_every=STEPS[2],
)  # fmt: skip
DEEPLAB = TrainConfig(
    init="none", steps=400, batch=16, crop=192, smallest_side=256, workers=8, save_every=400
)
LIVELY: dict[str, Any] = {"temperature": 0.9, "top_k": 50}


def run() -> list[dict[str, object]]:
    """What is done already is not done again."""
    from generate.evaluate import evaluate
    from generate.train_codes import train_mask_codes, train_painting_codes
    from generate.train_transformer import train_transformer
    from segment.train import train

    workspace = Workspace(FOLDER)
    stages: dict[str, Callable[[], Any]] = {
        "scenes": partial(_scenes, workspace),
        "DeepLab": partial(train, workspace, DEEPLAB, DEVICE),
        "mask codes": partial(train_mask_codes, workspace, MASK, DEVICE),
        "painting codes": partial(train_painting_codes, workspace, PAINTING, DEVICE),
        "transformer": partial(train_transformer, workspace, TOKENS, DEVICE),
        "evaluate": partial(
            evaluate, workspace, EvaluateConfig(masks=8, samples=2, perceptual="none", **LIVELY), DEVICE
        ),
        "pictures": partial(_pictures, workspace),
    }
    rows = []
    for name, work in stages.items():
        kept = FOLDER / f"{name.replace(' ', '-')}.json"
        if not kept.exists():
            started = time.monotonic()
            found = work()
            seconds = time.monotonic() - started
            note(f"-- {name}: {seconds:.1f} s")
            write_json(kept, {"s": seconds, "found": asdict(found) if found is not None else {}})
            if KEEP and workspace.reports.exists():
                _keep(workspace, Path(KEEP))
        rows.append((name, read_json(kept)))
    return [{"stage": name, "s": one["s"], "found": _words(name, one["found"])} for name, one in rows]


def _words(name: str, found: dict[str, Any]) -> str:
    if name == "evaluate":
        seen, back = found["fidelity"], found["reconstruction"]
        miou = seen["samples"]["miou"], seen["paintings"]["miou"]
        return (
            f"{back['psnr']:.1f} dB; {found['likelihood']['bits_per_token']:.2f} bits a token, "
            f"{found['likelihood']['without_mask']:.2f} without a mask; mIoU {miou[0]:.3f} in {found['samples']} new "
            f"paintings, {miou[1]:.3f} in the real ones ({miou[0] / miou[1]:.2f} of it); "
            f"{len(found['originality']['copies'])} copies"
        )
    if name == "transformer":
        bits = found["bits_per_token"], found["held_out_bits_per_token"]
        return f"{bits[0]:.2f} bits a token, {bits[1]:.2f} held out (step {found['steps']} of {TOKENS.steps})"
    if "codes" in name:
        return f"{found['steps']} steps, loss {found['loss']:.3f}, {found['used']} codes in use"
    return ""


def _scenes(workspace: Workspace) -> None:
    with ProcessPoolExecutor() as crew:
        keys = list(crew.map(partial(_scene, workspace), range(SCENES), chunksize=5))
    for name, some in {"train": keys[:-HELD_OUT], "val": keys[-HELD_OUT:]}.items():
        write_whole(workspace.masks("shifted") / f"{name}.txt", "".join(f"{key}.png\n" for key in some))
    write_index(workspace, scan(workspace.root / "paintings", workspace).paintings)


def _scene(workspace: Workspace, number: int) -> str:
    from PIL import Image

    from demo.painter import paint

    key, scene = f"scene-{number:03d}", paint(number, SIZE)
    path = workspace.root / "paintings" / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.painting).save(path, compress_level=1)
    write_mask(workspace.mask("shifted", key), shift(scene.ids), Encoding.SHIFTED)
    if number < HAND:
        write_mask(workspace.mask("hand", key), scene.ids, Encoding.RAW)
    return key


def _pictures(workspace: Workspace) -> None:
    """Masks above, the painter's own scenes, and two new paintings each below; and canvases twice and four times as large."""
    from generate.grid import stack
    from generate.sample import sample

    keys = [f"scene-{number:03d}" for number in range(SCENES - HELD_OUT, SCENES)][:5]
    classes, index = workspace.settings().classes, read_index(workspace)
    columns = []
    for key in keys:
        asked = SampleConfig(mask=key, count=2, precision="bfloat16", seed=7, **LIVELY)
        made = [load_painting(Path(one.path)) for one in sample(workspace, asked, DEVICE).samples]
        ids = unshift(read_mask(workspace.mask("shifted", key), Encoding.SHIFTED))
        columns.append([colour(ids, classes), load_painting(index[key].file(workspace)), *made])
    stack(workspace.reports / "new-paintings.png", columns)
    for size in ("640x960", "920x1152"):
        asked = SampleConfig(mask=keys[0], size=size, precision="bfloat16", seed=3, check=False, **LIVELY)
        (large,) = sample(workspace, asked, DEVICE).samples
        shutil.copyfile(large.path, workspace.reports / f"canvas-{size}.png")
        note(f"{size}: {np.asarray(load_painting(Path(large.path))).shape}")


def _keep(workspace: Workspace, folder: Path) -> None:
    """Copy what is in reports/ by now."""
    shutil.copytree(workspace.reports, folder, dirs_exist_ok=True)
