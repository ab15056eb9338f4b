"""PatchGAN: says of every patch of an image whether it was painted or reconstructed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchDiscriminator(nn.Sequential):
    """Convolutions of stride 2, then one logit a patch: (B, 3, H, W) in [-1, 1] -> (B, 1, h, w).

    A higher logit means "looks painted".

    Args:
        channels: width of the first convolution; it doubles with every layer, up to 8 times.
        layers: convolutions of stride 2; three of them see patches of 70 pixels.

    Source: Isola et al. 2017 (pix2pix), appendix 6.1.2, as used in taming-transformers.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, layers + 1):
            stride = 2 if n < layers else 1
            parts += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[n]),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)


def hinge_loss(painted: Tensor, reconstructed: Tensor) -> Tensor:
    """The discriminator's loss from its logits of both.

    Source: Lim and Ye 2017 (geometric GAN).
    """
    return 0.5 * (torch.relu(1 - painted).mean() + torch.relu(1 + reconstructed).mean())
