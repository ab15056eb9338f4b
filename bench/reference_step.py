"""A training step with the reference's operations: what `bench/train_step.py` measures ours against.

The networks are the project's own, so that both sides have the same weights and shapes; `use_reference_operations` puts
the reference's operations in their place: attention spelt out, with a mask buffer; swish as x * sigmoid(x); convolution
of an enlarged copy. The steps below feed a 182-channel one-hot through the mask's VQGAN, run the VQGAN once for each of
the two optimizers, run both encoders in every transformer step, and use Adam as torch makes it by default. What the
published code also does is left out where it only costs time: dropout in the perceptual loss, logging, reading files.

Source: taming-transformers, taming/modules/transformer/mingpt.py, taming/modules/diffusionmodules/model.py,
taming/models/vqgan.py, taming/models/cond_transformer.py, taming/modules/losses/vqperceptual.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate import gpt, norm, vqgan
from generate.config import GPTConfig
from generate.discriminator import PatchDiscriminator
from generate.gpt import GPT
from generate.perceptual import PerceptualLoss
from generate.presets import MaskCodesSettings, PaintingCodesSettings, TransformerSettings
from generate.vqgan import VQGAN

LABELS = 182
Step = Callable[[], None]


def use_reference_operations() -> None:
    """For the whole process: nothing of ours can be measured in it any more."""
    setattr(F, "silu", lambda x: x * torch.sigmoid(x))  # noqa: B010, mypy forbids the plain way
    setattr(norm.Norm, "forward", nn.GroupNorm.forward)  # noqa: B010
    setattr(vqgan, "lay_out", lambda x: x)  # noqa: B010
    setattr(vqgan.AttnBlock, "forward", _image_attention)  # noqa: B010
    setattr(vqgan.Upsample, "forward", _enlarged)  # noqa: B010
    setattr(gpt.CausalSelfAttention, "forward", _masked_attention)  # noqa: B010


def _image_attention(self: Any, x: Tensor) -> Tensor:
    h = self.norm(x)
    q, k, v = self.q(h), self.k(h), self.v(h)
    b, c, height, width = q.shape
    q = q.reshape(b, c, height * width).permute(0, 2, 1)
    weight = torch.bmm(q, k.reshape(b, c, height * width)) * int(c) ** -0.5
    weight = F.softmax(weight, dim=2).permute(0, 2, 1)
    h = torch.bmm(v.reshape(b, c, height * width), weight).reshape(b, c, height, width)
    projected: Tensor = self.proj_out(h)
    return x + projected


def _enlarged(self: Any, x: Tensor) -> Tensor:
    found: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return found


def _masked_attention(self: Any, x: Tensor, rows: slice) -> Tensor:
    b, t, c = x.shape
    if not hasattr(self, "mask"):
        self.register_buffer("mask", torch.tril(torch.ones(512, 512))[None, None])
    k, q, v = (
        f(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        for f in (self.key, self.query, self.value)
    )
    weight = (q @ k.transpose(-2, -1)) * (k.shape[-1] ** -0.5)
    weight = weight.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
    y = F.softmax(weight, dim=-1) @ v
    y = y.transpose(1, 2).contiguous().view(b, t, c)
    projected: Tensor = self.resid_drop(self.proj(y))
    return projected


def painting_step(
    x: Tensor, config: PaintingCodesSettings, perceptual: PerceptualLoss, autocast: Any
) -> Step:
    """A step of both optimizers on a batch (B, 3, c, c) in [-1, 1]."""
    net, judge = VQGAN(config.vqgan()), PatchDiscriminator(config.discriminator_channels)
    first = torch.optim.Adam(net.parameters(), config.lr, betas=config.betas)
    second = torch.optim.Adam(judge.parameters(), config.lr, betas=config.betas)
    last = net.decoder.conv_out.weight

    def lpips(a: Tensor, b: Tensor) -> Tensor:  # both images in the graph, as there
        levels = zip(perceptual._levels(a), perceptual._levels(b), strict=True)
        far: Any = sum(
            (((one - other) ** 2) * w[:, None, None]).sum(1).mean()
            for (one, other), w in zip(levels, perceptual.channels, strict=True)
        )
        return torch.as_tensor(far)

    def step() -> None:
        # Lightning lets only the weights of the optimizer at hand ask for gradients
        net.requires_grad_(True), judge.requires_grad_(False)
        with autocast():
            y, codebook, _ = net(x)
            distance = (x - y).abs().mean() + lpips(x, y)
            fooled = -judge(y).mean()
            pull = torch.autograd.grad(distance, last, retain_graph=True)[0]
            other = torch.autograd.grad(fooled, last, retain_graph=True)[0]
            weight = (pull.norm() / (other.norm() + 1e-4)).clamp(0.0, 1e4).detach() * config.adversarial
            loss = distance + weight * fooled + codebook
        first.zero_grad()
        torch.autograd.backward(loss)
        first.step()
        net.requires_grad_(False), judge.requires_grad_(True)
        with autocast():
            y, codebook, _ = net(x)  # once more: each optimizer has a training_step of its own
            real, fake = judge(x.detach()), judge(y.detach())
            loss = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
        second.zero_grad()
        torch.autograd.backward(loss)
        second.step()

    return step


def mask_step(ids: Tensor, config: MaskCodesSettings, autocast: Any) -> Step:
    """A step on masks (B, c, c), each of its classes against the rest in all 182 channels."""
    net = VQGAN(config.vqgan())
    optimizer = torch.optim.Adam(net.parameters(), config.lr, betas=config.betas)

    def step() -> None:
        x = F.one_hot(ids, LABELS).permute(0, 3, 1, 2).float()
        with autocast():
            logits, codebook, _ = net(x)
            loss = F.binary_cross_entropy_with_logits(logits, x) + codebook
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def transformer_step(
    x: Tensor,
    ids: Tensor,
    config: TransformerSettings,
    sizes: GPTConfig,
    codes: tuple[VQGAN, VQGAN],
    autocast: Any,
) -> Step:
    """A step on paintings (B, 3, c, c) and masks (B, c, c), each encoded anew."""
    net = GPT(sizes)
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, betas=(0.9, 0.95))

    def step() -> None:
        with autocast():
            with torch.no_grad():
                painting = codes[0].encode(x).indices.flatten(1)
                one_hot = F.one_hot(ids, LABELS).permute(0, 3, 1, 2).float()
                mask = codes[1].encode(one_hot).indices.flatten(1)
            logits = net(torch.cat([mask, painting], 1)[:, :-1])[:, mask.shape[1] - 1 :]
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), painting.reshape(-1))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step
