"""Which device a model runs on, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from annotate.errors import UserError


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device; auto takes a GPU where there is one.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; use --device cpu, or run `tool doctor`")
    return torch.device(name)


@contextmanager
def memory_told(device: torch.device, advice: str) -> Iterator[None]:
    """Too little memory within it is a UserError that gives the advice; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise UserError(f"out of memory on {device.type}: {advice}") from error
        raise


@cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Does the device multiply bfloat16 matrices in hardware (AMX or AVX-512 BF16 on a CPU)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot tell
        return False
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


@cache
def has_amx() -> bool:
    """Does the processor multiply whole tiles of bfloat16 (AMX), where AVX-512 takes them lane by lane."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
