"""`tool segment`: learn from the hand masks, label the rest, write shifted masks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from annotate.options import device_option, emit, json_option, settings, workspace_option
from segment.config import ConvertConfig, EvaluateConfig, LabelConfig, TrainConfig

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
    from segment.train import train

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
    from segment.predict import pseudo_label

    result = pseudo_label(workspace, config, device)
    workspace.save_report("segment-pseudo-label", dataclasses.asdict(result))
    text = (
        f"{result.labelled} labelled now, {result.there} there, {result.hand} annotated by hand; "
        f"mean confidence {result.mean_confidence:.2f}\nthen: tool segment convert"
    )
    emit(result, as_json, text, result.problems)


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
    from segment.evaluate import evaluate, report

    result = evaluate(workspace, config, device)
    workspace.save_report("segment-evaluate", report(result))
    how = "cross-validated on" if result.method == "folds" else "against the truth of"
    emit(report(result), as_json, f"{result.scores.table()}\n{how} {result.paintings} paintings")


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
