"""The whole flow on the demo's own paintings, every part of it real."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotate.config import PullConfig, PushConfig
from annotate.masks import Encoding, read_mask, unshift, write_mask
from annotate.progress import note
from annotate.workspace import Workspace
from demo.config import DemoConfig

STAND_IN = "The annotator was a stand-in: a program that posts the true regions as brush strokes and polygons to Label Studio."


# the scenes are small and few, and no weights can be downloaded for sure: from scratch, in about a minute
DEEPLAB: dict[str, Any] = {"steps": 300, "crop": 192, "smallest_side": 0}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    report: str
    samples: tuple[str, ...]
    seconds: float
    steps: dict[str, float]  # seconds each


def run_demo(folder: Path, config: DemoConfig, device: str = "auto") -> DemoResult:
    """Run every step in `folder`; one that is done is not repeated, so a killed demo carries on.

    Raises:
        UserError: what any step says.
    """
    from demo.picture import first_sample_of, flow_picture
    from demo.report import build_report

    workspace = Workspace(folder)
    clock = _Clock(workspace)
    started = time.monotonic()
    steps: dict[str, Callable[[], Any]] = {
        "demo-paint": lambda: _paint(workspace, config),
        "annotate-push": lambda: _push(workspace, config),
        "demo-annotate": lambda: _annotate(workspace),
        "annotate-pull": lambda: _pull(workspace),
        "segment-train": lambda: _train_deeplab(workspace, config, device),
        "segment-pseudo-label": lambda: _pseudo_label(workspace, device),
        "segment-evaluate": lambda: _evaluate(workspace, device),
        "segment-convert": lambda: _convert(workspace),
        "generate-train-painting": lambda: _train_generator(workspace, config, device, "painting"),
        "generate-train-mask": lambda: _train_generator(workspace, config, device, "mask"),
        "generate-train-transformer": lambda: _train_generator(workspace, config, device, "transformer"),
        "generate-sample": lambda: _sample(workspace, config, device),
    }
    try:
        for number, (name, step) in enumerate(steps.items(), 1):
            clock.run(name, step, f"[{number}/{len(steps)}]")
    finally:
        if not config.keep_server:
            _stop(workspace)
    mixed = workspace.root / "compositions" / "mixed.png"
    painted = first_sample_of(workspace, mixed)
    assert painted is not None, "the last step paints from every composition"
    flow_picture(workspace, mixed, painted)
    report = build_report(workspace, note=STAND_IN)
    samples = tuple(str(path) for path in sorted(workspace.samples.glob("*.png")))
    return DemoResult(str(report), samples, time.monotonic() - started, clock.seconds)


class _Clock:
    """Times the steps; what an earlier, killed run has measured is kept where it did the work."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        found = (workspace.report("demo") or {}).get("steps", {})
        self.seconds: dict[str, float] = {name: float(one["seconds"]) for name, one in found.items()}

    def run(self, name: str, step: Callable[[], Any], place: str) -> None:
        from demo.report import STEPS

        note(f"{place} {STEPS[name]}")
        started = time.monotonic()
        result = step()
        spent = time.monotonic() - started
        self.seconds[name] = max(spent, self.seconds.get(name, 0.0))
        if self.workspace.report(name) is None and result is not None:
            self.workspace.save_report(name, _figures(result))
        steps = {one: {"seconds": value} for one, value in self.seconds.items()}
        self.workspace.save_report("demo", {"steps": steps, "note": STAND_IN})


def _figures(result: Any) -> dict[str, Any]:
    values = asdict(result) if is_dataclass(result) and not isinstance(result, type) else dict(result)
    return {name: value for name, value in values.items() if isinstance(value, int | float | str | bool)}


def _paint(workspace: Workspace, config: DemoConfig) -> Mapping[str, Any]:
    from demo.painter import paint_folder

    keys = paint_folder(workspace.root / "paintings", _truth(workspace), config.paintings, config.seed)
    return {"scenes": len(keys), "first_seed": config.seed}


def _push(workspace: Workspace, config: DemoConfig) -> Any:
    from annotate.push import push

    fraction = config.annotated / config.paintings
    return push(workspace, workspace.root / "paintings", PushConfig(fraction=fraction, seed=config.seed))


def _annotate(workspace: Workspace) -> Any:
    from demo.annotator import stand_in

    return stand_in(workspace, _truth(workspace))


def _pull(workspace: Workspace) -> Mapping[str, Any]:
    from annotate.pull import pull

    result = pull(workspace, PullConfig())
    return {"masks": len(workspace.keys_with_mask("hand")), "problems": len(result.problems)}


def _stop(workspace: Workspace) -> None:
    from annotate import server

    server.stop(workspace)


def _truth(workspace: Workspace) -> Path:
    return workspace.root / "truth"


def _train_deeplab(workspace: Workspace, config: DemoConfig, device: str) -> Any:
    from segment.config import TrainConfig
    from segment.train import train

    return train(workspace, TrainConfig(init="none", seed=config.seed, **DEEPLAB), device)


def _pseudo_label(workspace: Workspace, device: str) -> Any:
    from segment.config import LabelConfig
    from segment.predict import pseudo_label

    return pseudo_label(workspace, LabelConfig(), device)


def _evaluate(workspace: Workspace, device: str) -> Any:
    from segment.config import EvaluateConfig
    from segment.evaluate import evaluate, report

    result = evaluate(workspace, EvaluateConfig(truth=_truth(workspace)), device)
    workspace.save_report("segment-evaluate", report(result))
    return result


def _convert(workspace: Workspace) -> Any:
    from segment.config import ConvertConfig
    from segment.convert import convert

    return convert(workspace, ConvertConfig())


def _sample(workspace: Workspace, config: DemoConfig, device: str) -> Mapping[str, Any]:
    from generate.sample import sample
    from generate.sample_config import SampleConfig

    done = 0
    tokens_a_second = []
    for mask in compositions(workspace):
        name = Path(mask).stem
        wanted = [workspace.samples / f"{name}-seed{config.seed}-{n:02d}.png" for n in range(config.samples)]
        if not all(path.exists() for path in wanted):
            made = sample(workspace, SampleConfig(mask=mask, count=config.samples, seed=config.seed), device)
            tokens_a_second.append(made.tokens_a_second)
        done += len(wanted)
    return {"paintings": done, "tokens_a_second": float(np.mean(tokens_a_second or [0.0]))}


def compositions(workspace: Workspace) -> list[str]:
    """Four masks to paint from: two paintings' own, one mirrored, and one of two paintings' halves.

    The keys come from the held-out list, whose paintings the transformer has not learnt from.
    """
    shifted = workspace.keys_with_mask("shifted")
    listed = (workspace.masks("shifted") / "val.txt").read_text(encoding="utf-8").split()
    held_out = [key for key in listed if key in shifted] or shifted
    first, second = held_out[0], held_out[-1]
    a, b = (unshift(read_mask(workspace.mask("shifted", key), Encoding.SHIFTED)) for key in (first, second))
    height, half = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1]) // 2
    made = {"mirrored": a[:, ::-1], "mixed": np.concatenate([a[:height, :half], b[:height, -half:]], 1)}
    paths = []
    for name, ids in made.items():
        path = workspace.root / "compositions" / f"{name}.png"
        write_mask(path, np.ascontiguousarray(ids), Encoding.RAW)
        paths.append(str(path))
    return [first, second, *paths]


def _train_generator(workspace: Workspace, config: DemoConfig, device: str, stage: str) -> Any:
    from generate.presets import MASK_CODES, PAINTING_CODES, TRANSFORMER
    from generate.train_codes import train_mask_codes, train_painting_codes
    from generate.train_transformer import train_transformer

    if stage == "painting":
        return train_painting_codes(workspace, PAINTING_CODES["small"], device)
    if stage == "mask":
        return train_mask_codes(workspace, MASK_CODES["small"], device)
    return train_transformer(workspace, TRANSFORMER["small"], device)
