"""Preset `seed` trained on a GPU for some minutes on the painter's scenes, and measured on scenes it has not seen.

400 scenes of the demo's painter at 460 x 576 pixels with their true masks, 16 of them held out; the trainings see crops of
256 pixels, as the preset says. What departs from the preset is made for minutes instead of days: larger batches, higher
learning rates that fall, k-means start and revival of codes, aligned start, token dropout and texture loss (docs/bench-hand.md).
There are no weights for the perceptual loss, and the preset's discriminator starts at step 10,000, which is never reached: what
is left are L1, the Laplacian pyramid's and the texture loss. The DeepLab that looks at the new paintings learns from 100 true
masks, on a CPU.

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

from annotate.files import read_json, write_json, write_whole
from annotate.masks import Encoding, read_mask, shift, unshift, write_mask
from annotate.page import colour
from annotate.paintings import load_painting, read_index, scan, write_index
from annotate.progress import note
from annotate.workspace import Workspace
from generate.data import scale
from generate.evaluate_config import EvaluateConfig
from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER
from generate.sample_config import SampleConfig
from segment.config import TrainConfig
from segment.device import choose_device

FOLDER = Path(os.environ.get("BENCH_SEED_PRESET", Path(tempfile.gettempdir()) / "bench-seed-preset"))
KEEP = os.environ.get("BENCH_KEEP")
DEVICE = "cuda"
STEPS = [int(one) for one in os.environ.get("BENCH_STEPS", "1500 400 2000").split()]
SCENES, HELD_OUT, HAND, SIZE = 400, 16, 100, (460, 576)
LEARN: dict[str, Any] = {"decay": "cosine", "warmup": 50, "clip": 1.0, "workers": 8}
PAINTING = replace(
    PAINTING_CODES["seed"], **LEARN, steps=STEPS[0], batch=8, lr=4e-4, perceptual="none", detail=1.0, texture=4.0,
    start_codebook=STEPS[0] // 5, revive_every=25, save_every=STEPS[0],
)  # fmt: skip
MASK = replace(
    MASK_CODES["seed"], **LEARN, steps=STEPS[1], batch=8, lr=5e-4, loss="balanced", start_codebook=STEPS[1] // 4,
    revive_every=25, save_every=STEPS[1],
)  # fmt: skip
TOKENS = replace(
    TRANSFORMER["seed"], **LEARN, steps=STEPS[2], batch=16, lr=4e-4, token_dropout=0.5, aligned_start=True, views=1,
    save_every=-(-STEPS[2] // 2),
)  # fmt: skip
DEEPLAB = TrainConfig(init="none", steps=300, crop=192, smallest_side=256, lr=2e-3, balance=0.25)
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
        "DeepLab": partial(train, workspace, DEEPLAB, "cpu"),
        "mask codes": partial(train_mask_codes, workspace, MASK, DEVICE),
        "painting codes": partial(train_painting_codes, workspace, PAINTING, DEVICE),
        "transformer": partial(train_transformer, workspace, TOKENS, DEVICE),
        "evaluate": partial(
            evaluate, workspace, EvaluateConfig(masks=12, samples=2, perceptual="none", **LIVELY), DEVICE
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
    """The masks that were painted from, the painter's own scenes, and two new paintings of each below; a larger canvas."""
    from generate.grid import stack
    from generate.sample import load_models, sample

    classes, index = workspace.settings().classes, read_index(workspace)
    folder, size = workspace.samples / "evaluate", (SIZE[0] // 2, SIZE[1] // 2)
    keys = sorted(path.stem for path in (folder / "masks").glob("*.png"))
    columns = []
    for key in keys:
        ids = unshift(read_mask(folder / "masks" / f"{key}.png", Encoding.SHIFTED))
        paintings = [index[key].file(workspace), *sorted(folder.glob(f"{key}-*.png"))[:2]]
        shown = [colour(ids, classes), *(load_painting(path) for path in paintings)]
        columns.append([scale(one, size, smooth=True) for one in shown])
    stack(workspace.reports / "new-paintings.png", columns)
    models = load_models(workspace, choose_device(DEVICE))
    asked = SampleConfig(mask=keys[0], size="640x1152", precision="bfloat16", seed=3, check=False, **LIVELY)
    (large,) = sample(workspace, asked, DEVICE, models).samples
    shutil.copyfile(large.path, workspace.reports / "canvas-640x1152.png")


def _keep(workspace: Workspace, folder: Path) -> None:
    """Copy what is in reports/ by now."""
    shutil.copytree(workspace.reports, folder, dirs_exist_ok=True)
