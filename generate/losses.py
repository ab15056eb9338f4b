"""What the three stages minimise, but for the adversarial and the perceptual part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def detail_loss(reconstruction: Tensor, painting: Tensor, levels: int = 3) -> Tensor:
    """Mean L1 distance of the bands of a Laplacian pyramid; keeps the edges of strokes where they are.

    Plain L1 is ruled by large areas; here a stroke's edge weighs as much at every scale.

    Args:
        reconstruction, painting: (B, 3, H, W) in [-1, 1].
        levels: bands, each of half the size of the one before.

    Source: Bojanowski et al. 2018 (GLO), section 3.2, there with weights that grow with the scale.
    """
    difference = reconstruction - painting  # the pyramid is linear: one of the difference is enough
    total = difference.new_zeros(())
    for _ in range(levels):
        coarse = F.avg_pool2d(difference, 2, ceil_mode=True, count_include_pad=False)
        band = difference - F.interpolate(coarse, difference.shape[-2:])
        total = total + band.abs().mean()
        difference = coarse
    return total


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_weight: Tensor) -> Tensor:
    """How much the adversarial loss counts, so that both pull equally on the decoder's last weight.

    Source: Esser et al. 2021, equation 7.
    """
    (pull,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (other,) = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)
    weight: Tensor = pull.norm() / (other.norm() + 1e-4)
    return weight.clamp(0.0, 1e4).detach()


def class_wise_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every class against the rest, averaged over pixels and classes.

    Args:
        logits: (B, K, H, W), one channel a class, unlabelled included.
        target: (B, H, W) channel numbers, int64.

    Source: taming-transformers, taming/modules/losses/segmentation.py.
    """
    one_hot = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2)  # (B, K, H, W)
    return F.binary_cross_entropy_with_logits(logits, one_hot.to(logits.dtype))


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the classes against each other.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) channel numbers, int64.
    """
    return F.cross_entropy(logits, target)


def next_token_loss(logits: Tensor, painting_tokens: Tensor) -> Tensor:
    """Cross-entropy of the painting tokens given the mask tokens and the painting tokens before them.

    Args:
        logits: (B, 2 n - 1, V) for the sequence of n mask tokens and the first n - 1 painting tokens.
        painting_tokens: (B, n).

    Returns:
        mean over tokens, in nats.
    """
    count = painting_tokens.shape[1]
    predicted = logits[:, -count:]  # position n - 1 + i predicts painting token i
    return F.cross_entropy(predicted.flatten(0, 1).float(), painting_tokens.flatten())
