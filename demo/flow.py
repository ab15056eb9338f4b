"""The whole flow on the demo's own paintings, every part of it real but for the annotator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from annotate.config import PullConfig, PushConfig
from annotate.errors import UserError
from annotate.progress import note
from annotate.workspace import Workspace
from demo.config import DemoConfig
from demo.figures import STEPS

STAND_IN = (
    "The annotator was a stand-in: a program that posts the true regions as brush strokes and polygons "
    "to Label Studio, which a person would draw there."
)
# the scenes are small and few, and it is not sure that weights can be downloaded: from scratch
DEEPLAB: dict[str, Any] = {
    "init": "none",
    "steps": 300,
    "crop": 192,
    "smallest_side": 0,
    "lr": 2e-3,
    "balance": 0.25,
    "colour": 0.2,
    "scale_low": 0.7,
    "scale_high": 1.5,
}
# The calmer default paints every tree in the one likeliest colour; this is nearer to the paintings (sliced Wasserstein
# distance 0.30 instead of 0.34). Guidance makes lamps shine where the mask has them, and what DeepLab sees is nearer to
# what was asked for: mIoU with guidance 1, 1.5, 2, 3, 4 is 0.512, 0.525, 0.531, 0.536, 0.547, the distance 0.299, 0.291,
# 0.289, 0.287, 0.290, all with codes before the texture loss.
LIVELY: dict[str, Any] = {"temperature": 0.9, "top_k": 30, "guidance": 3.0}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    report: str
    samples: tuple[str, ...]
    seconds: float  # of this run
    steps: dict[str, float]  # seconds each, over all runs that it took


def run_demo(folder: Path, config: DemoConfig, device: str = "auto") -> DemoResult:
    """Run every step in `folder`; one that is done is not repeated, so a killed demo carries on.

    Raises:
        UserError: what any step says.
    """
    from demo.report import build_report

    workspace = Workspace(folder)
    clock = _Clock(workspace)
    started = time.monotonic()
    note(STAND_IN)
    steps: dict[str, Callable[[], Mapping[str, Any] | None]] = {
        "demo-paint": lambda: _paint(workspace, config),
        "annotate-push": lambda: _push(workspace, config),
        "demo-annotate": lambda: _annotate(workspace),
        "annotate-pull": lambda: _pull(workspace),
        "segment-train": lambda: _train_deeplab(workspace, config, device),
        "segment-pseudo-label": lambda: _pseudo_label(workspace, device),
        "segment-evaluate": lambda: _evaluate(workspace, device),
        "segment-convert": lambda: _convert(workspace, config),
        "generate-train-painting": lambda: _train_painting_codes(workspace, config, device),
        "generate-train-mask": lambda: _train_mask_codes(workspace, config, device),
        "generate-train-transformer": lambda: _train_transformer(workspace, config, device),
        "generate-sample": lambda: _sample(workspace, config, device),
    }
    try:
        for number, (name, step) in enumerate(steps.items(), 1):
            note(f"[{number}/{len(steps)}] {STEPS[name]}")
            clock.run(name, step)
    finally:
        if not config.keep_server:
            _stop(workspace)
    _draw_flow(workspace)
    report = build_report(workspace)
    samples = tuple(str(path) for path in sorted(workspace.samples.glob("*.png")))
    return DemoResult(str(report), samples, time.monotonic() - started, clock.seconds())


class _Clock:
    """Times the steps over all runs: a step that was cut off and went on counts with both its parts."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.steps: dict[str, dict[str, Any]] = dict((workspace.report("demo") or {}).get("steps", {}))

    def run(self, name: str, step: Callable[[], Mapping[str, Any] | None]) -> None:
        """Run one step and keep the figures that it returns, if it did anything."""
        before = self.steps.get(name, {"seconds": 0.0, "done": False})
        started = time.monotonic()
        done = False
        try:
            figures = step()
            done = True
        finally:
            spent = time.monotonic() - started
            if not before["done"]:
                spent += before["seconds"]
            seconds = round(max(spent, before["seconds"]), 1)  # a look at what is done adds nothing
            self.steps[name] = {"seconds": seconds, "done": done or before["done"]}
            self.workspace.save_report("demo", {"steps": self.steps, "note": STAND_IN})
        if figures is not None:
            self.workspace.save_report(name, dict(figures))

    def seconds(self) -> dict[str, float]:
        return {name: float(one["seconds"]) for name, one in self.steps.items()}


def _truth(workspace: Workspace) -> Path:
    return workspace.root / "truth"


def _paint(workspace: Workspace, config: DemoConfig) -> Mapping[str, Any]:
    from demo.painter import paint_folder

    keys = paint_folder(workspace.root / "paintings", _truth(workspace), config.paintings, config.seed)
    return {"scenes": len(keys), "first_seed": config.seed}


def _push(workspace: Workspace, config: DemoConfig) -> None:
    from annotate.push import push

    fraction = config.annotated / config.paintings
    result = push(workspace, workspace.root / "paintings", PushConfig(fraction=fraction, seed=config.seed))
    _all_good(result.problems)
    note(f"{result.chosen} of {result.paintings} paintings are at {result.url}")


def _annotate(workspace: Workspace) -> Mapping[str, Any] | None:
    from demo.annotator import stand_in

    result = stand_in(workspace, _truth(workspace))
    return asdict(result) if result.annotated else None


def _pull(workspace: Workspace) -> None:
    from annotate.pull import pull

    result = pull(workspace, PullConfig())
    _all_good(result.problems)
    note(result.text())


def _stop(workspace: Workspace) -> None:
    from annotate import server

    server.stop(workspace)


def _train_deeplab(workspace: Workspace, config: DemoConfig, device: str) -> Mapping[str, Any] | None:
    from segment.config import TrainConfig
    from segment.train import train

    result = train(workspace, TrainConfig(seed=config.seed, **DEEPLAB), device)
    return asdict(result) if result.trained else None


def _pseudo_label(workspace: Workspace, device: str) -> Mapping[str, Any] | None:
    from segment.config import LabelConfig
    from segment.label import pseudo_label

    result = pseudo_label(workspace, LabelConfig(), device)
    _all_good(result.problems)
    return asdict(result) if result.labelled else None


def _evaluate(workspace: Workspace, device: str) -> Mapping[str, Any]:
    from segment.config import EvaluateConfig
    from segment.evaluate import evaluate

    result = evaluate(workspace, EvaluateConfig(truth=_truth(workspace)), device)
    note(result.scores.table())
    return result.report()


def _convert(workspace: Workspace, config: DemoConfig) -> Mapping[str, Any] | None:
    from segment.config import ConvertConfig
    from segment.convert import convert

    result = convert(workspace, ConvertConfig(seed=config.seed))
    _all_good(result.problems)
    return asdict(result) if result.written or result.removed else None


def _train_painting_codes(workspace: Workspace, config: DemoConfig, device: str) -> None:
    from generate.presets import PAINTING_CODES
    from generate.train_codes import train_painting_codes

    train_painting_codes(workspace, replace(PAINTING_CODES["small"], seed=config.seed), device)


def _train_mask_codes(workspace: Workspace, config: DemoConfig, device: str) -> None:
    from generate.presets import MASK_CODES
    from generate.train_codes import train_mask_codes

    train_mask_codes(workspace, replace(MASK_CODES["small"], seed=config.seed), device)


def _train_transformer(workspace: Workspace, config: DemoConfig, device: str) -> None:
    from generate.presets import TRANSFORMER
    from generate.train_transformer import train_transformer

    train_transformer(workspace, replace(TRANSFORMER["small"], seed=config.seed), device)


def _sample(workspace: Workspace, config: DemoConfig, device: str) -> Mapping[str, Any] | None:
    from generate.sample import sample
    from generate.sample_config import SampleConfig

    before = len(list(workspace.samples.glob("*.png")))
    masks = compositions(workspace)
    results = [  # a seed each: the same noise would choose the same colours four times
        sample(workspace, SampleConfig(mask=mask, count=config.samples, seed=seed, **LIVELY), device)
        for seed, mask in enumerate(masks, config.seed)
    ]
    made = len(list(workspace.samples.glob("*.png")))
    speeds = [one.tokens_a_second for one in results]
    figures = {"masks": len(masks), "paintings": made, "tokens_a_second": float(np.median(speeds))}
    return figures if made > before else None


def compositions(workspace: Workspace) -> list[str]:
    """Four masks to paint from: two paintings' own, one on a larger canvas, and one of two paintings' halves.

    The paintings are held-out ones, which the transformer has not learnt from.
    """
    from generate.compose import compose_enlarged, compose_mixed
    from generate.compose_config import EnlargeConfig, MixConfig
    from generate.data import held_out_keys

    shifted = workspace.keys_with_mask("shifted")
    held_out = held_out_keys(workspace)
    first, second = sorted(shifted, key=lambda key: (key not in held_out, key))[:2]
    wide = EnlargeConfig(by=1.25, name="enlarged")
    made = [
        compose_enlarged(workspace, first, wide),
        compose_mixed(workspace, first, second, MixConfig(name="mixed")),
    ]
    return [first, second, *(one.path for one in made)]


def _draw_flow(workspace: Workspace) -> None:
    """The picture of the flow at the report's head."""
    from demo.picture import first_sample_of, flow_picture

    mixed = workspace.composition("mixed")
    painted = first_sample_of(workspace, mixed)
    assert painted is not None, "the last step paints from every composition"
    flow_picture(workspace, mixed, painted)


def _all_good(problems: tuple[str, ...]) -> None:
    """The demo's own paintings have no faults: anything left out stops it."""
    if problems:
        raise UserError(f"{problems[0]}; the demo makes its own files: try again in a new folder")
