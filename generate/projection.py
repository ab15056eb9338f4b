"""A linear layer at sampling time: its weights as float32, bfloat16, or int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from annotate.errors import UserError

Precision = Literal["float32", "bfloat16", "int8"]
Projection = Callable[[Tensor], Tensor]  # (..., in) -> (..., out)


def activations(precision: Precision) -> torch.dtype:
    """What runs between the layers: bfloat16 for bfloat16, else float32."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def kept(precision: Precision) -> torch.dtype:
    """What keys and values are kept in. Reading them is a good part of a step, so int8 keeps bfloat16."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def projection(weight: Tensor, bias: Tensor | None, precision: Precision) -> Projection:
    """Lay out a layer's weights.

    Args:
        weight: (out, in) float32.
        bias: (out,) float32.

    Raises:
        UserError: int8 on a device that has no such kernel.
    """
    if precision == "int8":
        return Int8Projection(weight.detach(), None if bias is None else bias.detach())
    dtype = activations(precision)
    return DenseProjection(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype))


class DenseProjection:
    """Weights in the precision of what goes through."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Projection:
    """Weights as int8 with a scale for each output; each row that comes in is rounded to int8 by its own largest.

    A scale of its own for every row makes rows independent: integer sums are exact, so what shares a batch cannot
    change a result. One scale for the whole tensor, as `torch.ops.quantized.linear_dynamic` has it, would.

    Source: Dettmers et al. 2022 (LLM.int8), section 2.1, vector-wise quantisation.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.device.type != "cpu" or torch.backends.quantized.engine == "none":
            raise UserError("--precision int8 runs on a CPU only; use --precision bfloat16, or --device cpu")
        scales = (weight.abs().amax(1).clamp(min=1e-12) / 127).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.bias = torch.zeros(len(weight)) if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / 127, 128, self.packed
        )
        return torch.addcmul(self.bias, product, largest)
