"""Memory that training frees is kept for its next step, instead of going back to the system and coming again.

A step on a CPU frees and asks for the same large tensors again and again. The C library hands each of them back to the
system at once, and the next one's pages are cleared and mapped anew: adding two tensors of 32 MB took 9.7 ms so, and
takes 2.9 ms out of memory that was kept. But what is kept falls into pieces: a training of codes in bfloat16 that also
kept the few tensors of 32 MB and more took 4.2 GB instead of 3.5, for 2 % less time. In float32 most are that large.

Source: mallopt(3), M_MMAP_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h
_USUAL = {
    _TRIM_THRESHOLD: 2**17,
    _TOP_PAD: 2**17,
    _MMAP_MAX: 65536,
}  # where the threshold rises to 32 MB by itself
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20, _MMAP_MAX: 0}
_KEPT_BUT_LARGE = {
    **_KEPT,
    _MMAP_THRESHOLD: 32 * 2**20,
    _MMAP_MAX: 65536,
}  # the largest threshold that glibc takes


@contextmanager
def freed_memory_kept(device: str = "cpu", large: bool = True) -> Iterator[None]:
    """Within it, freed memory stays with the process; behind it, it is given back. Without glibc nothing changes.

    Args:
        device: the type that the tensors are on; nothing changes for another than cpu.
        large: keep that of tensors of 32 MB and more too.
    """
    if device != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    _set(libc, _KEPT if large else _KEPT_BUT_LARGE)
    try:
        yield
    finally:
        _set(libc, _USUAL)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        libc.mallopt(name, value)
