"""A linear layer at sampling time: its weights as float32, bfloat16, or int8."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from annotate.errors import UserError
from generate.drafting import Costs

Precision = Literal["float32", "bfloat16", "int8"]
Projection = Callable[[Tensor], Tensor]  # (..., in) -> (..., out)

FEW = 2  # rows up to which int8 takes FBGEMM
LANES = 64  # outputs that oneDNN computes at a time


def activations(precision: Precision) -> torch.dtype:
    """What runs between the layers: bfloat16 for bfloat16, else float32."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def kept(precision: Precision) -> torch.dtype:
    """What keys and values are kept in. Reading them is a good part of a step, so int8 keeps bfloat16."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def pass_costs(precision: Precision, device: torch.device, compiled: bool) -> Costs:
    """Of a pass through layers of this precision.

    Measured: where int8 has no instructions of its own (see Int8Projection), 8 rows take 1.2 times as long as one, and 16
    twice; with attention compiled, one sequence's pass of 4 rows takes 1.1 times as long as one of a single row, 8 rows 1.6
    and 16 rows 2.5. Everywhere else on a CPU, 16 take 1.25 to 1.8 times as long, and 64 up to 3.5 times.

    Args:
        compiled: attention is (`generate.few_queries`).
    """
    if device.type == "cuda":
        return Costs(256)
    if precision == "int8" and largest_int8_weight() < 127:
        return Costs(5, fixed=0.2, kept=0.54) if compiled else Costs(8)
    return Costs(64)


def projection(weight: Tensor, bias: Tensor | None, precision: Precision) -> Projection:
    """Lay out a layer's weights.

    Args:
        weight: (out, in) float32.
        bias: (out,) float32.

    Raises:
        UserError: int8 on a device that has no such kernel.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == "int8":
        return Int8Projection(weight, bias)
    dtype = activations(precision)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    on_cpu = weight.device.type == "cpu" and _has_onednn()
    if on_cpu and (precision == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return PackedProjection(weight, bias)
    return DenseProjection(weight, bias)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def largest_int8_weight() -> int:
    """127 where this processor multiplies the largest int8 weights and rows exactly, else 63."""
    largest = torch.full((LANES, 64), 127.0)
    packed = torch.ops.quantized.linear_prepack(_rounded(largest, torch.ones(LANES)), None)
    found = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(largest[:1], 1.0, 128, packed)
    return 127 if bool((found == 64 * 127**2).all()) else 63


@cache
def onednn_is_quick() -> bool:
    """Has oneDNN a kernel for int8 on this processor; its reference, all that it has on some, takes a thousand times as long."""
    if not _has_onednn():
        return False
    side, rows = 256, torch.ones(16, 256)
    scales, zeros = torch.ones(side), torch.zeros(side, dtype=torch.int64)
    rounded = _rounded(torch.ones(side, side), scales)
    for_few = torch.ops.quantized.linear_prepack(rounded, None)
    for_many = torch.ops.onednn.qlinear_prepack(rounded.int_repr(), None)
    fbgemm = _least_seconds(lambda: _fbgemm(rows, for_few))
    return _least_seconds(lambda: _onednn(rows.clone(), for_many, scales, zeros)) < 20 * fbgemm


def _least_seconds(work: Callable[[], Tensor]) -> float:
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _fbgemm(x: Tensor, packed: Any) -> Tensor:
    """Rows in [-127, 127], rounded, times the weights."""
    y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1.0, 128, packed)
    return y


def _onednn(x: Tensor, packed: Any, scales: Tensor, zeros: Tensor) -> Tensor:
    """The same; x is spent."""
    whole = x.round_().to(torch.int8)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        whole, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


def _rounded(weight: Tensor, scales: Tensor) -> Tensor:
    """(out, in) as int8 with a scale for each output; torch has no other way into its kernels than one it deprecates."""
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize")
        return torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)


class DenseProjection:
    """Weights as they are, in the precision of what goes through."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedProjection(DenseProjection):
    """Weights also in the order in which oneDNN reads them, for more than a few rows.

    `F.linear` sorts them anew in every such call. In bfloat16 8 rows through the seed document's transformer take 40 ms
    so and 30 ms packed, but a single row needs no sorting: 38 ms as they are, 40 ms packed. In float32 8 rows take 149 and
    82 ms; two or three are quicker unpacked on some processors (3: 63 and 75 ms), and far slower on others (a third
    of the weights: 144 and 42 ms).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            return super().__call__(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


class Int8Projection:
    """Weights as int8 with a scale for each output; each row that comes in is rounded to int8 by its own largest.

    A scale of its own for every row makes rows independent: integer sums are exact, so what shares a batch cannot
    change a result. One scale for the whole tensor, as `torch.ops.quantized.linear_dynamic` has it, would.

    Two kernels give the same bits (oneDNN's where outputs fill whole lanes): FBGEMM's is quicker for one or two rows,
    oneDNN's for more (8 rows through the seed document's transformer: 27 ms and 24 ms; 256 rows: 104 ms).

    Processors without instructions for it (VNNI or AMX) add two products in 16 bits, which the largest do not fit: there
    weights have 7 bits, and FBGEMM takes all rows (16 rows through 100 million weights: 17 ms, oneDNN 397, float32 69). On a
    Zen 4, which has VNNI, oneDNN still has only its reference kernel (16 rows through 4 million weights: 731 ms, FBGEMM 0.2).

    Source: Dettmers et al. 2022 (LLM.int8), section 2.1, vector-wise quantisation.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.device.type != "cpu" or torch.backends.quantized.engine == "none":
            raise UserError("--precision int8 runs on a CPU only; use --precision bfloat16, or --device cpu")
        largest = largest_int8_weight()
        self.scales = weight.abs().amax(1).clamp(min=1e-12) / largest
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        rounded = _rounded(weight.float(), self.scales)
        self.for_few = torch.ops.quantized.linear_prepack(rounded, None)
        usable = largest == 127 and len(weight) % LANES == 0 and onednn_is_quick()
        self.for_many = torch.ops.onednn.qlinear_prepack(rounded.int_repr(), None) if usable else None
        self.least = torch.tensor(1e-14)  # of a row's scale
        self.bias = torch.zeros(len(weight)) if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        step = torch.add(self.least, x.abs().amax(-1, keepdim=True), alpha=1 / 127)
        few = x.numel() <= FEW * x.shape[-1] or self.for_many is None
        whole = x / step
        y = _fbgemm(whole, self.for_few) if few else _onednn(whole, self.for_many, self.scales, self.zeros)
        return torch.addcmul(self.bias, y, step)
