"""Group norm in the memory layout that the convolutions around it are quick in.

On a CPU, bfloat16 convolutions take channels-last memory two to three times as fast as contiguous memory, and float32
ones take both alike. torch's group norm is quick backward in contiguous memory only (4 ms against 33 ms for 128
channels of 256 x 256 in bfloat16), so for channels-last memory the backward pass stands here.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def lay_out(x: Tensor) -> Tensor:
    """(B, C, H, W) in the memory layout that suits its precision, or autocast's, on its device."""
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    return x.contiguous(memory_format=layout(x.device, dtype))


def layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The memory layout in which convolutions of this precision are quick."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        return torch.channels_last
    return torch.contiguous_format


class Norm(nn.GroupNorm):
    """Group norm in 32 groups, of (B, C, H, W); its output has the memory layout that suits its precision."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # A 1 x 1 convolution on the CPU hands on channels-last memory whatever it gets.
        wanted = layout(x.device, x.dtype)
        x = x.contiguous(memory_format=wanted)
        if x.device.type == "cuda" and x.dtype == torch.bfloat16:
            # autocast would have its input and output in float32, though its sums are so in either precision
            with torch.autocast("cuda", enabled=False):
                weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
                return nn.functional.group_norm(x, self.num_groups, weight, bias, self.eps)
        if wanted is torch.contiguous_format:
            return super().forward(x)
        return cast(Tensor, _ChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps))


class _ChannelsLast(torch.autograd.Function):
    """Group norm of channels-last memory.

    Source: Wu and He 2018, "Group Normalization", equations 1 to 6, and their derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        y, mean, scale = torch.native_group_norm(
            x, weight, bias, batch, channels, height * width, groups, eps
        )
        ctx.save_for_backward(x, mean, scale, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors  # (B, groups): mean and scale
        batch, channels, height, width = x.shape
        groups = mean.shape[1]
        inside = channels // groups  # channels of a group

        def rows(image: Tensor) -> Tensor:
            return image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)

        def by_group(channelwise: Tensor) -> Tensor:
            found: Tensor = (channelwise * weight).view(batch, groups, inside).sum(2)
            return found

        def by_channel(groupwise: Tensor) -> Tensor:
            return groupwise.repeat_interleave(inside, 1)

        pull, seen = rows(gradients[0]), rows(x)  # (B, H W, C)
        pulls, products = (
            pull.sum(1, dtype=torch.float32),
            (pull * seen).sum(1, dtype=torch.float32),
        )  # (B, C)
        centred = (products - by_channel(mean) * pulls) * by_channel(scale)
        # dx = scale weight pull + slope x + offset
        count = inside * height * width
        slope = (by_group(pulls) * mean - by_group(products)) * scale**3 / count
        offset = -slope * mean - by_group(pulls) * scale / count
        slope, offset, factor = (
            one[:, None].to(x.dtype)
            for one in (by_channel(slope), by_channel(offset), by_channel(scale) * weight)
        )
        dx = torch.addcmul(offset, seen, slope).addcmul_(pull, factor)
        dx = dx.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return dx, centred.sum(0), pulls.sum(0), None, None
