"""Memory that a training frees stays with it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_memory_that_training_frees_is_not_fetched_again() -> None:
    """In a process of its own, as a training has: what other tests left in the heap decides, too."""
    program = """
import resource, torch
from generate.memory import freed_memory_kept

def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(2**26).add_(1)  # 256 MB: 65536 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def several():
    return [fetched() for _ in range(4)]  # the heap's state decides whether one of them asks for more

usual = max(several())
with freed_memory_kept(large=False):
    large = max(several())
with freed_memory_kept():
    kept = min(several())
print(kept, usual, large, max(several()))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    kept, usual, large, behind = map(int, done.stdout.split())
    assert kept < 0.2 * usual
    assert kept < 0.2 * behind, "memory goes back behind it"
    assert large > 0.5 * usual, "tensors of 32 MB and more are given back where that was asked for"
