"""The VQGAN: an encoder to a grid of tokens, and a decoder back. State-dict names are taming-transformers'.

Source: taming-transformers, taming/modules/diffusionmodules/model.py and taming/models/vqgan.py;
Esser, Rombach and Ommer, "Taming Transformers for High-Resolution Image Synthesis", section 3.1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate.config import VQGANConfig
from generate.norm import Norm, lay_out, layout
from generate.quantize import Codebook, Quantized


class ResnetBlock(nn.Module):
    """Twice norm, swish, 3 x 3 convolution; plus the input, through a 1 x 1 where the widths differ."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = Norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + cast(Tensor, h)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # contiguous: torch's fused attention on the CPU wants it; the other one is fifteen times slower
        q, k, v = (f(h).flatten(2).mT.contiguous() for f in (self.q, self.k, self.v))  # (B, h w, C)
        attended = F.scaled_dot_product_attention(q, k, v)  # scaled by C ** -0.5
        attended = attended.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)  # (B, C, h, w)
        return x + cast(Tensor, self.proj_out(lay_out(attended)))


class Downsample(nn.Module):
    """Half the size, by a convolution of stride 2 padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Twice the size, nearest, then a 3 x 3 convolution.

    Of the three rows that a row of the output sees, two are copies of one row of the input, above or below. So each of
    the four outputs of an input's place is a 2 x 2 convolution, with sums of the kernel's rows and columns: 4 / 9 of
    the work, and no enlarged copy. Where the kernel is larger than the image, or bfloat16 products on a CPU cost next
    to nothing, making the sums and putting the four together takes longer than that saves.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), weight = x.shape, self.conv.weight  # (C, C, 3, 3)
        if h * w < c or layout(x.device, x.dtype) is torch.channels_last:
            return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        kernels = [kernel for rows in _two_of_three(weight, 2) for kernel in _two_of_three(rows, 3)]
        bias = None if self.conv.bias is None else self.conv.bias.repeat(4)
        four = F.conv2d(x, torch.cat(kernels), bias, padding=1)  # (B, 4 C, h + 1, w + 1)
        parts = four.view(b, 4, c, h + 1, w + 1).unbind(1)
        out = [
            torch.stack([parts[2 * i + j][:, :, i : i + h, j : j + w] for j in (0, 1)], -1)  # (B, C, h, w, 2)
            for i in (0, 1)
        ]
        return torch.stack(out, 3).view(b, c, 2 * h, 2 * w)


def _two_of_three(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Kernels of two along `dim` for even outputs and for odd ones, from one of three."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)


class _Level(nn.Module):
    """One resolution: residual blocks, attention after each where the config says so, then a resampling."""

    def __init__(self, widths: list[int], attends: bool, dropout: float) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attends)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x))))


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, z_channels, H / f, W / f)."""

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c.in_channels, c.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width, resolution = c.channels, c.resolution
        for number, multiplier in enumerate(c.channel_multipliers):
            wide = c.channels * multiplier
            level = _Level(
                [width] + [wide] * c.residual_blocks, resolution in c.attention_resolutions, c.dropout
            )
            if number < len(c.channel_multipliers) - 1:
                level.downsample = Downsample(wide)
                resolution //= 2
            self.down.append(level)
            width = wide
        self.mid = _Middle(width, c.dropout)
        self.norm_out = Norm(width)
        self.conv_out = nn.Conv2d(width, c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_conv_in(self.conv_in(lay_out(x)))

    def after_conv_in(self, x: Tensor) -> Tensor:
        """Everything behind the first convolution."""
        for level in self.down:
            x = level(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_channels, h f, w f)."""

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        width = c.channels * c.channel_multipliers[-1]
        resolution = c.resolution // c.downsampling
        self.conv_in = nn.Conv2d(c.z_channels, width, 3, padding=1)
        self.mid = _Middle(width, c.dropout)
        levels: list[_Level] = []
        for number in reversed(range(len(c.channel_multipliers))):
            wide = c.channels * c.channel_multipliers[number]
            attends = resolution in c.attention_resolutions
            level = _Level([width] + [wide] * (c.residual_blocks + 1), attends, c.dropout)
            if number > 0:
                level.upsample = Upsample(wide)
                resolution *= 2
            levels.insert(0, level)  # index 0 is the full resolution, as in the reference
            width = wide
        self.up = nn.ModuleList(levels)
        self.norm_out = Norm(width)
        self.conv_out = nn.Conv2d(width, c.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(lay_out(z)))
        for level in reversed(self.up):
            x = level(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class VQGAN(nn.Module):
    """Encoder, codebook and decoder. Paintings are (B, 3, H, W) in [-1, 1]; H and W multiples of `downsampling`."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def prequantised(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, embed_dim, h, w), before the codebook."""
        return cast(Tensor, self.quant_conv(self.encoder(x)))

    def prequantised_mask(self, ids: Tensor) -> Tensor:
        """The same for masks given as shifted ids (B, H, W), without ever making the one-hot (B, 182, H, W)."""
        return cast(
            Tensor, self.quant_conv(self.encoder.after_conv_in(one_hot_conv(self.encoder.conv_in, ids)))
        )

    def encode(self, x: Tensor) -> Quantized:
        """(B, C, H, W) -> tokens."""
        return cast(Quantized, self.quantize(self.prequantised(x)))

    def encode_mask(self, ids: Tensor) -> Quantized:
        """Shifted ids (B, H, W), 0..in_channels - 1 -> tokens."""
        return cast(Quantized, self.quantize(self.prequantised_mask(ids)))

    def codes_to_z(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> (B, embed_dim, h, w)."""
        return self.quantize.lookup(indices)

    def decode(self, z: Tensor) -> Tensor:
        """Quantised (B, embed_dim, h, w) -> (B, out_channels, H, W)."""
        return cast(Tensor, self.decoder(self.post_quant_conv(z)))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> (B, out_channels, H, W)."""
        return self.decode(self.codes_to_z(indices))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct (B, C, H, W): (reconstruction, codebook loss, indices)."""
        quantized = self.encode(x)
        return self.decode(quantized.z), quantized.loss, quantized.indices


def one_hot_conv(conv: nn.Conv2d, ids: Tensor) -> Tensor:
    """A 3 x 3 convolution of a one-hot mask, as a sum of nine look-ups.

    Each tap of the kernel multiplies a vector that is one at a single channel, so it picks one row of its
    weights; the padding's vector is zero, which row `channels` stands for here.

    Args:
        conv: 3 x 3, padding 1, from C channels to O.
        ids: (B, H, W) channel numbers, 0..C - 1.

    Returns:
        (B, O, H, W)
    """
    out, channels = conv.weight.shape[:2]
    taps = conv.weight.permute(2, 3, 1, 0).reshape(9, channels, out)  # (9, C, O)
    taps = F.pad(taps, (0, 0, 0, 1))  # (9, C + 1, O)
    height, width = ids.shape[1:]
    padded = F.pad(ids.long(), (1, 1, 1, 1), value=channels)  # (B, H + 2, W + 2)
    total = cast(Tensor, conv.bias).expand(*ids.shape, out)  # (B, H, W, O)
    for tap in range(9):
        row, column = divmod(tap, 3)
        total = total + F.embedding(padded[:, row : row + height, column : column + width], taps[tap])
    if torch.is_autocast_enabled(ids.device.type):
        total = total.to(torch.get_autocast_dtype(ids.device.type))
    # In float32 contiguous, because torch's channels-last group norm on the CPU computes the variance in one pass, and
    # loses it to cancellation where a mask is all one class: indices would differ from the reference's.
    return lay_out(total.permute(0, 3, 1, 2))
