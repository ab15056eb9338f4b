"""What one evaluation of the generator found, and how it reads in a terminal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from generate.originality import Threshold
from segment.scores import Scores


@dataclass(frozen=True)
class Reconstruction:
    """Held-out paintings through the painting codes and back; means over paintings."""

    paintings: int
    psnr: float  # dB
    ssim: float
    lpips: float | None  # None without VGG16's weights


@dataclass(frozen=True)
class CodebookFigures:
    """How much of a codebook is used."""

    rows: int
    used: int
    perplexity: float


@dataclass(frozen=True)
class Likelihood:
    """Bits a painting token, on windows that cover the held-out paintings."""

    bits_per_token: float
    without_mask: float  # the same windows, the mask all unlabelled
    windows: int


@dataclass(frozen=True)
class Fidelity:
    """What the project's DeepLab sees, against the masks that were asked for."""

    samples: Scores
    paintings: Scores  # the real paintings of the same masks
    labelled_by_it: int  # masks that this DeepLab made: it agrees with itself about their paintings

    @property
    def ratio(self) -> float:
        return self.samples.miou / max(self.paintings.miou, 1e-9)


@dataclass(frozen=True)
class Originality:
    """Distance of each painting's nearest crop to what was learnt from."""

    samples: dict[str, float]
    held_out: dict[str, float]
    threshold: Threshold
    copies: tuple[str, ...]  # samples below the threshold


@dataclass(frozen=True)
class EvaluateResult:
    """All figures of one evaluation."""

    report: str
    samples: int
    reconstruction: Reconstruction
    masks: Scores  # held-out masks through the mask codes and back, against what they were
    painting_codebook: CodebookFigures
    mask_codebook: CodebookFigures
    likelihood: Likelihood
    wasserstein: dict[
        str, list[float]
    ]  # a band, finest first, of: samples, held out, held out through the codes
    fidelity: Fidelity | None  # None without a DeepLab
    originality: Originality
    seconds: float


def summary(result: EvaluateResult) -> str:
    """The result in a few lines for the terminal."""
    back, likely, near = result.reconstruction, result.likelihood, result.originality
    lpips = "" if back.lpips is None else f", LPIPS {back.lpips:.3f}"
    lines = [
        f"reconstruction of {back.paintings} held-out paintings: PSNR {back.psnr:.1f} dB, SSIM {back.ssim:.3f}{lpips}",
        f"masks through the codes: {_kept(result.masks)}",
        f"codebooks: {_use(result.painting_codebook)} of the paintings, {_use(result.mask_codebook)} of the masks",
        f"likelihood: {likely.bits_per_token:.2f} bits a token, {likely.without_mask:.2f} without a mask",
        "sliced Wasserstein: "
        + ", ".join(f"{name} {np.mean(bands):.3f}" for name, bands in result.wasserstein.items()),
    ]
    if result.fidelity is not None:
        seen, real = result.fidelity.samples.miou, result.fidelity.paintings.miou
        lines.append(
            f"composition: mIoU {seen:.3f} in {result.samples} new paintings, {real:.3f} in the real ones "
            f"({result.fidelity.ratio:.2f} of it)"
        )
    lines.append(
        f"originality: nearest crop at {min(near.samples.values()):.2f} (held-out {min(near.held_out.values()):.2f}), "
        f"{len(near.copies)} copies below {near.threshold.value:.2f}"
    )
    return "\n".join([*lines, result.report])


def _kept(masks: Scores) -> str:
    there = [(one.iou, one.name) for one in masks.classes if one.iou is not None and one.pixels]
    iou, name = min(there, default=(0.0, "nothing"))
    return f"mIoU {masks.miou:.3f}, least {name} {iou:.3f}"


def _use(one: CodebookFigures) -> str:
    return f"{one.used} of {one.rows} rows (perplexity {one.perplexity:.0f})"
