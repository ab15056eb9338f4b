"""`tool segment`: learn from the hand masks, label the rest, write shifted masks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from annotate.options import device_option, emit, json_option, settings, workspace_option
from segment.config import AssistConfig, ConvertConfig, EvaluateConfig, LabelConfig, TrainConfig

if TYPE_CHECKING:
    from annotate.workspace import Workspace


@click.group()
def segment() -> None:
    """Learn from the hand masks, label the rest, write shifted masks."""


@segment.command("train")
@workspace_option
@json_option
@device_option
@click.option("--again", is_flag=True, help="Train afresh even where the model is up to date.")
@settings(TrainConfig)
def train_command(workspace: Workspace, as_json: bool, device: str, again: bool, config: TrainConfig) -> None:
    """Train a DeepLabV3 on the hand masks, into models/deeplab.

    With --rounds, after the first part of the steps, the model labels the other paintings and learns on from these
    too, that many times. New or changed hand masks, classes or settings train it again; a killed run goes on where it stood.

    \b
    Example:
      tool segment train --steps 1000 --rounds 1
    """
    from annotate.progress import is_first, silence
    from segment.train import train

    if not is_first():  # of several that train together
        click.get_current_context().with_resource(silence())
    result = train(workspace, config, device, again)
    if result.trained:
        workspace.save_report("segment-train", dataclasses.asdict(result))
        text = f"trained on {result.masks - result.held_out} masks in {result.seconds:.0f} s, loss {result.loss:.3f}"
        if result.miou is not None:
            text += f", mIoU {100 * result.miou:.1f} on {result.held_out} held out"
    else:
        text = (
            "up to date: the masks, classes and settings are those it was trained with (--again trains anew)"
        )
    emit(result, as_json, f"{text}\nthen: tool segment pseudo-label")


@segment.command("pseudo-label")
@workspace_option
@json_option
@device_option
@settings(LabelConfig)
def pseudo_label_command(workspace: Workspace, as_json: bool, device: str, config: LabelConfig) -> None:
    """Label every painting without a hand mask: masks/pseudo and masks/confidence.

    \b
    Example:
      tool segment pseudo-label --scales 0.75,1,1.25
    """
    from segment.crew import join
    from segment.label import REPORT, pseudo_label

    result = pseudo_label(workspace, config, device)
    if join().leads:
        workspace.save_report(REPORT, dataclasses.asdict(result))
        shown = {name: value for name, value in dataclasses.asdict(result).items() if name != "ranking"}
        emit(shown, as_json, result.text(), result.problems)


@segment.command("evaluate")
@workspace_option
@json_option
@device_option
@settings(EvaluateConfig)
def evaluate_command(workspace: Workspace, as_json: bool, device: str, config: EvaluateConfig) -> None:
    """How good the labels are: by cross-validation on the hand set, or against true masks.

    \b
    Example:
      tool segment evaluate --folds 5
    """
    from segment.evaluate import evaluate

    result = evaluate(workspace, config, device)
    workspace.save_report("segment-evaluate", result.report())
    emit(result.report(), as_json, result.text())


@segment.command("convert")
@workspace_option
@json_option
@settings(ConvertConfig)
def convert_command(workspace: Workspace, as_json: bool, config: ConvertConfig) -> None:
    """Write the shifted masks that the generator learns from: masks/shifted, train.txt, val.txt, manifest.json.

    \b
    Example:
      tool segment convert
    """
    from segment.convert import convert

    result = convert(workspace, config)
    workspace.save_report("segment-convert", dataclasses.asdict(result))
    text = (
        f"{result.written} written, {result.unchanged} unchanged, {result.removed} removed: "
        f"{result.hand} from a hand, {result.pseudo} from the model, {result.without} paintings without a mask; "
        f"{result.held_out} held out\nthen: tool generate train painting"
    )
    emit(result, as_json, text, result.problems)


@segment.command("report")
@workspace_option
@json_option
def report_command(workspace: Workspace, as_json: bool) -> None:
    """Write reports/segment.html: scores, confusion, reliability, the least sure and the surest paintings.

    \b
    Example:
      tool segment report
    """
    from segment.report import write_report

    path = write_report(workspace)
    emit({"report": str(path)}, as_json, f"written: {path}")


@segment.command("assist")
@workspace_option
@json_option
@device_option
@settings(AssistConfig)
def assist_command(workspace: Workspace, as_json: bool, device: str, config: AssistConfig) -> None:
    """Help live: tasks without a pre-annotation open in Label Studio pre-filled by the current model.

    It runs until you stop it (Ctrl-C), and takes up a newly trained model by itself.

    \b
    Example:
      tool segment assist
    """
    import signal

    from segment.assist import serve

    def ready(backend: str, studio: str) -> None:
        text = f"helping at {studio} (from {backend}); stop it: Ctrl-C"
        emit({"backend": backend, "studio": studio}, as_json, text)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        serve(workspace, config, device, ready)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
