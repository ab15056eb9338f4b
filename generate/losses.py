"""What the three stages minimise, but for the adversarial and the perceptual part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generate.wasserstein import laplacian_bands

HEAVIEST = 10.0  # weight of a pixel: a few stray ones shall not rule


def detail_loss(reconstruction: Tensor, painting: Tensor, levels: int = 3) -> Tensor:
    """Mean L1 distance of the bands of a Laplacian pyramid; keeps the edges of strokes where they are.

    Plain L1 is ruled by large areas; here a stroke's edge weighs as much at every scale.

    Args:
        reconstruction, painting: (B, 3, H, W) in [-1, 1].
        levels: bands, each of half the size of the one before.

    Source: Bojanowski et al. 2018 (GLO), section 3.2, there with weights that grow with the scale.
    """
    # the pyramid is linear: one of the difference is enough
    bands = laplacian_bands(reconstruction - painting, levels + 1)[:-1]
    return torch.stack([band.abs().mean() for band in bands]).sum()


def adversarial_sum(
    image: Tensor,
    seen: Tensor,
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    factor: float,
    last_weight: Tensor,
) -> Tensor:
    """The reconstruction's loss, and the adversarial one so weighted that both pull equally on the last weight.

    Equation 7 asks for either loss's gradient at the decoder's last weight, and training for that of their sum
    everywhere. Each network that judges the image is run backward once only: to the image, from where the rest
    follows.

    Args:
        image: (B, 3, H, W) from the decoder.
        seen: the same, detached and with a gradient of its own; both losses are made from it.
        factor: on the adversarial loss, beside the weight.
        last_weight: of the convolution that made `image`.

    Returns:
        a scalar with the sum's value, and its gradient for whatever made `image`; the losses' networks get none.

    Source: Esser et al. 2021, equation 7; taming-transformers goes through both networks twice for it.
    """
    (pull,) = torch.autograd.grad(reconstruction_loss, seen)
    (other,) = torch.autograd.grad(adversarial_loss, seen)
    norms = [
        torch.autograd.grad(image, last_weight, one, retain_graph=True)[0].norm() for one in (pull, other)
    ]
    weight = factor * (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4)
    value = reconstruction_loss + weight * adversarial_loss
    carried = (image * (pull + weight * other)).sum()  # its gradient at the image is the sum's
    total: Tensor = carried - carried.detach() + value.detach()
    return total


def class_wise_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every class against the rest, averaged over pixels and classes.

    Args:
        logits: (B, K, H, W), one channel a class, unlabelled included.
        target: (B, H, W) channel numbers, int64.

    Source: taming-transformers, taming/modules/losses/segmentation.py.
    """
    one_hot = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2)  # (B, K, H, W)
    return F.binary_cross_entropy_with_logits(logits, one_hot.to(logits.dtype))


def pixel_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the classes against each other, averaged over pixels.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) channel numbers, int64.
        weights: (K,) of the pixels of each class; all 1 without.
    """
    return F.cross_entropy(logits, target, weights, reduction="none").mean()


def balanced_weights(pixels: Tensor) -> Tensor:
    """Weights with which all classes have the same share of the loss, whatever they cover; the mean pixel weighs 1.

    Street lights cover a hundredth of a painting: unweighted, codes that leave them out lose next to nothing.

    Args:
        pixels: (K,) how many each class has; one that has none weighs 1.

    Returns:
        (K,) float32, at most `HEAVIEST`.
    """
    there = pixels > 0
    share = pixels.double() / pixels.sum()
    weights = 1 / (share * there.sum()).clamp(min=1e-12)
    return torch.where(there, weights, 1.0).clamp(max=HEAVIEST).float()


def next_token_loss(logits: Tensor, painting_tokens: Tensor) -> Tensor:
    """Cross-entropy of the painting tokens given the mask tokens and the painting tokens before them.

    Args:
        logits: (B, n, V) or more; the last n rows predict the painting tokens, as those of the sequence of n mask
            tokens and the first n - 1 painting tokens do.
        painting_tokens: (B, n).

    Returns:
        mean over tokens, in nats.
    """
    count = painting_tokens.shape[1]
    predicted = logits[:, -count:]  # in the sequence, position n - 1 + i predicts painting token i
    return F.cross_entropy(predicted.flatten(0, 1).float(), painting_tokens.flatten())
