"""`tool generate train`: the two codebooks, and the transformer on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from annotate.options import device_option, emit, json_option, settings, workspace_option
from annotate.progress import is_first, silence
from generate.presets import (
    MASK_CODES,
    PAINTING_CODES,
    TRANSFORMER,
    MaskCodesSettings,
    PaintingCodesSettings,
    TransformerSettings,
)

if TYPE_CHECKING:
    from annotate.workspace import Workspace
    from generate.train_codes import CodesResult

UP_TO_DATE = "up to date: its pictures and settings are those it was trained with (--again trains anew)"
again_option = click.option(
    "--again",
    is_flag=True,
    help="Begin at step 0, even where the model is up to date or a training is unfinished. To go on with one that "
    "was killed, leave it out.",
)


@click.group()
def train() -> None:
    """Train the generator: painting, then mask, then transformer.

    A killed training goes on where it stood when the same command runs again, without --again.
    """
    if not is_first():
        click.get_current_context().with_resource(silence())


@train.command("painting")
@workspace_option
@json_option
@device_option
@again_option
@settings(PaintingCodesSettings, PAINTING_CODES)
def painting_command(
    workspace: Workspace, as_json: bool, device: str, again: bool, config: PaintingCodesSettings
) -> None:
    """Learn the codebook of the paintings: what a stroke can look like, into models/painting-codes.

    \b
    Example:
      tool generate train painting --preset small
    """
    from generate.train_codes import train_painting_codes

    result = train_painting_codes(workspace, config, device, again)
    emit(result, as_json, f"{_codes_line(result, 'L1')}\nthen: tool generate train mask")


@train.command("mask")
@workspace_option
@json_option
@device_option
@again_option
@settings(MaskCodesSettings, MASK_CODES)
def mask_command(
    workspace: Workspace, as_json: bool, device: str, again: bool, config: MaskCodesSettings
) -> None:
    """Learn the codebook of the shifted masks: what a border can look like, into models/mask-codes.

    \b
    Example:
      tool generate train mask --preset small
    """
    from generate.train_codes import train_mask_codes

    result = train_mask_codes(workspace, config, device, again)
    emit(result, as_json, f"{_codes_line(result, 'cross-entropy')}\nthen: tool generate train transformer")


@train.command("transformer")
@workspace_option
@json_option
@device_option
@again_option
@settings(TransformerSettings, TRANSFORMER)
def transformer_command(
    workspace: Workspace, as_json: bool, device: str, again: bool, config: TransformerSettings
) -> None:
    """Learn how painting tokens follow from mask tokens, into models/transformer.

    The paintings in masks/shifted/val.txt are not learnt from; the weights that predict them best are kept.

    \b
    Example:
      tool generate train transformer --preset small
    """
    from generate.train_transformer import train_transformer

    result = train_transformer(workspace, config, device, again)
    text = UP_TO_DATE
    if result.trained:
        text = (
            f"{result.paintings} paintings, {result.seconds:.0f} s, {result.bits_per_token:.2f} bits a token"
        )
        if result.held_out_bits_per_token is not None:
            text += (
                f"; {result.held_out_bits_per_token:.2f} on {result.held_out} held out (step {result.steps})"
            )
    emit(result, as_json, f"{text}\nthen: tool generate sample --mask KEY")


def _codes_line(result: CodesResult, loss: str) -> str:
    if not result.trained:
        return UP_TO_DATE
    return (
        f"{result.pictures} pictures, {result.steps} steps in {result.seconds:.0f} s, {loss} {result.loss:.3f}, "
        f"{result.used} codes in use (perplexity {result.perplexity:.0f})"
    )
