"""A training step of the three stages in preset `seed`, batch 1, against the reference's operations, on the CPU.

Median seconds of seven steps behind two that do not count, and peak memory of the process, each side in a process of
its own. `times faster` is against the reference in the same precision. Both sides have the same networks; see
`bench/reference_step.py` for what the reference does differently. The painting stage has its adversarial and perceptual
losses on, the latter with random weights. Ours runs as `tool generate train` does, on painted scenes scaled to 460
pixels. The transformer's paintings are cut to tokens once for the whole training: what that comes to a step (600
paintings, all their views, over the preset's steps) is in its figure, and also given by itself.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from annotate.files import read_json, write_json
from annotate.progress import note
from bench.timing import milliseconds

STAGES = ("transformer", "mask", "painting")
SIDES = (("reference", "float32"), ("ours", "float32"), ("reference", "bfloat16"), ("ours", "bfloat16"))
STEPS, UNCOUNTED = 9, 2
FOLDER = os.environ.get("BENCH_TRAIN_STEP")  # keeps what is measured: a killed run goes on behind it
PAINTINGS = 600  # of the seed document: over how many the cutting to tokens is spread
SCENE = (460, 576)  # (H, W)


def run() -> list[dict[str, object]]:
    return [row for stage in STAGES for row in stage_rows(stage)]


def stage_rows(stage: str, device: str = "cpu") -> list[dict[str, object]]:
    """The rows of one stage on `cpu` or `cuda`."""
    rows: list[dict[str, object]] = []
    reference: dict[str, float] = {}
    for side, precision in SIDES:
        found = _measured(stage, side, precision, device)
        step = median(found["seconds"]) + found["cutting"]
        reference.setdefault(precision, step)
        rows.append(
            {
                "stage": stage,
                "side": f"{side}, {precision}",
                "s a step": step,
                "of it cutting": found["cutting"],
                "times faster": reference[precision] / step,
                "peak, GiB": found["peak"],
            }
        )
    return rows


def _measured(stage: str, side: str, precision: str, device: str) -> dict[str, Any]:
    kept = Path(FOLDER) / f"{stage}-{side}-{precision}-{device}.json" if FOLDER else None
    if kept and kept.exists():
        return dict(read_json(kept))
    words = [sys.executable, "-m", "bench.train_step", stage, side, precision, device]
    found = dict(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    note(f"{stage}, {side}, {precision}, {device}: {found}")
    if kept:
        write_json(kept, found)
    return found


def _child(stage: str, side: str, precision: str, device: str) -> dict[str, Any]:
    import torch

    measure = _ours if side == "ours" else _reference
    with tempfile.TemporaryDirectory() as folder:
        seconds, cutting = measure(Path(folder), stage, precision, device)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "cutting": cutting, "peak": peak}


def _reference(folder: Path, stage: str, precision: str, device: str) -> tuple[list[float], float]:
    import torch

    from bench import reference_step
    from generate.perceptual import find_perceptual
    from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER
    from generate.vqgan import VQGAN

    reference_step.use_reference_operations()
    torch.manual_seed(0)
    torch.set_default_device(device)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    painting, mask = PAINTING_CODES["seed"], MASK_CODES["seed"]
    x, ids = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randint(7, (1, 32, 32)).repeat_interleave(8, 1)
    ids = ids.repeat_interleave(8, 2)
    if stage == "painting":
        lpips = find_perceptual(str(_random_vgg(folder)))
        assert lpips is not None
        step = reference_step.painting_step(x, painting, lpips.to(device), autocast)
    elif stage == "mask":
        step = reference_step.mask_step(ids, mask, autocast)
    else:
        codes = (VQGAN(painting.vqgan()).eval(), VQGAN(mask.vqgan()).eval())
        config = TRANSFORMER["seed"]
        step = reference_step.transformer_step(
            x, ids, config, config.gpt(painting.codebook_size), codes, autocast
        )
    seconds = [milliseconds(step) / 1000 for _ in range(_steps(device))]
    return seconds[UNCOUNTED:], 0.0


def _steps(device: str) -> int:
    """Enough behind those that a GPU needs to set itself up and to record."""
    return STEPS if device == "cpu" else 5 * STEPS


def _ours(folder: Path, stage: str, precision: str, device: str) -> tuple[list[float], float]:
    """The real training, its steps timed from one end to the next."""
    from generate.presets import MASK_CODES, PAINTING_CODES
    from generate.train import Stage
    from generate.train_codes import train_mask_codes, train_painting_codes

    ends: list[float] = []
    remember = Stage._remember

    def timed(self: Stage) -> None:
        remember(self)
        ends.append(time.perf_counter())

    setattr(Stage, "_remember", timed)  # noqa: B010, mypy forbids the plain way
    short: dict[str, Any] = {
        "steps": _steps(device), "save_every": _steps(device), "workers": 0, "precision": precision
    }  # fmt: skip
    cutting = 0.0
    if stage == "transformer":
        cutting = _transformer(folder, short, precision, device)
    elif stage == "mask":
        train_mask_codes(_scenes(folder), replace(MASK_CODES["seed"], **short), device)
    else:
        # as after its warm-up; 10,000 steps are not waited for
        config = replace(PAINTING_CODES["seed"], adversarial_start=0, perceptual=str(_random_vgg(folder)))
        train_painting_codes(_scenes(folder), replace(config, **short), device)
    return [after - before for before, after in pairwise(ends)][UNCOUNTED - 1 :], cutting


def _transformer(folder: Path, short: dict[str, Any], precision: str, device: str) -> float:
    """Train on two scenes' tokens; seconds a step that cutting all paintings to tokens comes to."""
    from generate import train_transformer
    from generate.data import load_masks, load_pictures
    from generate.gpt import GPT
    from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER
    from generate.tokens import Windows, cut_to_tokens
    from generate.train import fit_stage
    from generate.training_state import Basis
    from generate.vqgan import VQGAN

    setattr(train_transformer, "WORTH_COMPILING", 0)  # noqa: B010, as in a training of the preset's length
    seed = TRANSFORMER["seed"]
    config, crop = replace(seed, **short), seed.window * 16
    workspace = _scenes(folder)
    paintings = load_pictures(workspace, seed.smallest_side, crop)
    masks = load_masks(workspace, seed.smallest_side, crop, MASK_CODES["seed"].n_labels)
    pairs = list(zip(paintings, masks, strict=True))
    codes = [VQGAN(one["seed"].vqgan()).eval() for one in (PAINTING_CODES, MASK_CODES)]
    for _ in range(1 + (device == "cuda")):  # a GPU sets itself up the first time
        started = time.perf_counter()
        tokens = cut_to_tokens(pairs, codes[0], codes[1], replace(seed, views=1), device)
        cutting = (time.perf_counter() - started) / len(pairs)
    del codes
    stage = train_transformer.TransformerStage(GPT(config.gpt(1024)), config, Basis({}), [], 1024)
    windows = Windows(tokens, config.window, 0, config.open_part, config.open_all)
    fit_stage(stage, windows, folder, device, "Training the transformer")
    return cutting * PAINTINGS * seed.views / (seed.steps * seed.batch)


def _scenes(folder: Path) -> Any:
    """Two painted scenes with their true masks."""
    from PIL import Image

    from annotate.masks import Encoding, shift, write_mask
    from annotate.paintings import scan, write_index
    from annotate.workspace import Workspace
    from demo.painter import paint

    workspace = Workspace(folder)
    (folder / "paintings").mkdir()
    for number in range(2):
        scene = paint(number, SCENE)
        Image.fromarray(scene.painting).save(folder / "paintings" / f"scene-{number}.png")
        write_mask(workspace.mask("shifted", f"scene-{number}"), shift(scene.ids), Encoding.SHIFTED)
    write_index(workspace, scan(folder / "paintings", workspace).paintings)
    return workspace


def _random_vgg(folder: Path) -> Path:
    """Weights of a VGG16 that nobody trained: the loss costs the same with them."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    path = folder / "vgg16.safetensors"
    save_file(
        {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}, path
    )
    return path


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:5])))
