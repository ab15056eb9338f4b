"""`tool status`: where the workspace stands along the flow, and the command to run next."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotate.options import emit, json_option, workspace_option
from demo.figures import readable

if TYPE_CHECKING:
    from annotate.workspace import Workspace

# the steps that only need a model's folder: model, what it is called, the command that makes it
MODELS = (
    ("deeplab", "DeepLab", "tool segment train"),
    ("painting-codes", "painting codes", "tool generate train painting"),
    ("mask-codes", "mask codes", "tool generate train mask"),
    ("transformer", "transformer", "tool generate train transformer"),
)


@dataclass(frozen=True)
class Step:
    """One step of the flow: `done` of `total`, what the files say about it, and how to go on."""

    name: str
    done: int
    total: int
    note: str = ""
    command: str = ""  # brings the step forward
    due: bool = False  # to be run once more, though there is a result

    @property
    def complete(self) -> bool:
        return self.total > 0 and self.done >= self.total


@dataclass(frozen=True)
class Position:
    """The whole flow, in order, and the next command, ready to be copied."""

    workspace: str
    steps: tuple[Step, ...]
    next: str


def position(workspace: Workspace) -> Position:
    """Read off the workspace's files where it stands; nothing is started and no model is loaded."""
    from annotate.paintings import read_index

    paintings = read_index(workspace) if workspace.index_file.exists() else {}
    hand = set(workspace.keys_with_mask("hand")) & paintings.keys()
    pseudo = set(workspace.keys_with_mask("pseudo")) & paintings.keys()
    shifted = set(workspace.keys_with_mask("shifted")) & paintings.keys()
    asked = sum(one.split == "hand" for one in paintings.values())
    rest = len(paintings) - len(hand)
    models = {name: _model_step(workspace, name, title, command) for name, title, command in MODELS}
    stale = _stale(workspace)
    samples = len(list(workspace.samples.glob("*.png"))) if workspace.samples.is_dir() else 0
    a_key = shlex.quote(min(shifted)) if shifted else "KEY"
    steps = (
        Step(
            "paintings",
            len(paintings),
            len(paintings),
            f"{asked} to annotate",
            "tool annotate push PAINTINGS",
        ),
        Step("hand masks", len(hand), asked, "", "tool annotate pull"),
        replace(models["deeplab"], note=stale, due=True) if stale else models["deeplab"],
        Step("pseudo masks", len(pseudo - hand), rest, _confidence(workspace), "tool segment pseudo-label"),
        Step("shifted masks", len(shifted), len(hand | pseudo), "", "tool segment convert"),
        models["painting-codes"],
        models["mask-codes"],
        models["transformer"],
        Step("samples", samples, 1, "", f"tool generate sample --mask {a_key}"),
    )
    noted = tuple(replace(step, note=step.note or _figure(workspace, step.name)) for step in steps)
    return Position(str(workspace.root), noted, _next(workspace, noted))


def _model_step(workspace: Workspace, name: str, title: str, command: str) -> Step:
    made, begun = ((workspace.model(name) / one).exists() for one in ("model.safetensors", "training.ckpt"))
    note = f"a training is unfinished: `{command}` with the same options goes on with it" if begun else ""
    return Step(title, int(made), 1, note, command, due=begun)


def _stale(workspace: Workspace) -> str:
    """How many hand masks show something else than when the model learnt from them, came or went since.

    By content, not by date: a workspace that was copied, or pulled again, asks for nothing.
    """
    from annotate.files import read_json
    from annotate.masks import LEARNT_FROM, mask_digests

    path = workspace.model("deeplab") / LEARNT_FROM
    learnt = read_json(path) if path.exists() else None
    if not isinstance(learnt, dict):
        return ""  # no model, or one that was not trained here
    there = mask_digests(workspace.masks("hand"))
    count = sum(learnt.get(key) != there.get(key) for key in learnt.keys() | there.keys())
    return f"{count} hand mask{'s' if count > 1 else ''} changed since: train again" if count else ""


def _confidence(workspace: Workspace) -> str:
    figures: dict[str, Any] = workspace.report("segment-pseudo-label") or {}
    mean = figures.get("mean_confidence")
    return f"mean confidence {mean:.2f}" if isinstance(mean, float) else ""


# step -> the report that has its last figures, and those that say most
FIGURES = {
    "DeepLab": ("segment-evaluate", ("miou", "pixel_accuracy")),
    "painting codes": ("generate-train-painting", ("loss", "used")),
    "mask codes": ("generate-train-mask", ("loss", "used")),
    "transformer": ("generate-train-transformer", ("bits_per_token", "held_out_bits_per_token")),
    "samples": ("generate-sample", ("tokens_a_second",)),
}


def _figure(workspace: Workspace, step: str) -> str:
    """The step's last figures in a few words; empty where it has none."""
    name, wanted = FIGURES.get(step, ("", ()))
    figures = (workspace.report(name) or {}) if name else {}
    chosen = {one: figures[one] for one in wanted if figures.get(one) is not None}
    return ", ".join(f"{label} {value}" for label, value in readable(chosen))


def _next(workspace: Workspace, steps: tuple[Step, ...]) -> str:
    here = (
        "" if workspace.root.resolve() == Path.cwd() else f" --workspace {shlex.quote(str(workspace.root))}"
    )
    by_name = {step.name: step for step in steps}
    if by_name["hand masks"].done == 0 and by_name["paintings"].done:
        return f"annotate in Label Studio (tool annotate serve{here}), then: tool annotate pull{here}"
    for step in steps:
        open_ended = step.name == "hand masks" and step.done > 0  # a person decides when it is enough
        if (not step.complete and not open_ended) or step.due:
            return step.command + here
    return by_name["samples"].command + here


def _table(found: Position) -> str:
    lines = [f"workspace {found.workspace}"]
    for step in found.steps:
        mark = "done" if step.complete and not step.due else ("part" if step.done else "")
        lines.append(f"  {step.name:<15}{step.done:>6} of {step.total:<6}{mark:<6}{step.note}".rstrip())
    return "\n".join([*lines, f"next: {found.next}"])


@click.command()
@workspace_option
@json_option
@click.option("--report", is_flag=True, help="Also write reports/index.html: figures, masks, new paintings.")
def status(workspace: Workspace, as_json: bool, report: bool) -> None:
    """Where the workspace stands along the flow, its last figures, and the command to run next.

    \b
    Example:
      tool status --workspace my-demo
    """
    found = position(workspace)
    text, value = _table(found), asdict(found)
    if report:
        from demo.report import build_report

        path = str(build_report(workspace))
        text, value = f"{text}\nreport: {path}", value | {"report": path}
    emit(value, as_json, text)
