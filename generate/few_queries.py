"""Attention of a few queries on a processor without AMX, by a C function that is compiled at the start.

A painting's step asks with one to some queries for all that is kept, so reading that once is what it should cost. torch
widens bfloat16 in passes of their own there: eight sequences to 384 tokens, 256 of them shared, take 29 to 43 ms through
the seed document's layers with AVX2, and 9 to 13 ms here. To compile takes a third of a second, of each process that samples so;
where there is no C compiler torch's way goes on.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from annotate.progress import note

MOST = 16  # queries of a sequence up to which it is quicker than torch; measured
LANES = 16  # numbers of a head that the C function takes at once
SOURCE = Path(__file__).with_suffix(".c")
COMPILE = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared")

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = (
    *(_POINTER,) * 4,
    *(_NUMBER,) * 2,
    *(_POINTER,) * 2,
    *(_NUMBER,) * 2,
    *(_POINTER,) * 2,
    *(_NUMBER,) * 3,
)


class FewQueries:
    """Splits, keeps and attends in one call.

    Args:
        function: `attend_few`, compiled for heads of `width`.
    """

    def __init__(self, function: ctypes._NamedFuncPointer, width: int) -> None:
        self._function, self._width = function, width
        function.argtypes, function.restype = _ARGUMENTS, None

    def __call__(
        self, qkv: Tensor, cache: Tensor, prefix: Tensor | None, starts: Sequence[int], holes: Tensor | None
    ) -> Tensor:
        """Keep the keys and values that come in, and attend: each token to itself and all before it.

        Args:
            qkv: (B t, 3 C) float32, queries, keys and values side by side.
            cache: (2, B, heads, n, d) bfloat16, what sequences keep for themselves.
            prefix: (2, A, heads, m, d) bfloat16, contiguous: what stands before it in B / A sequences in a row.
            starts: how many tokens of the cache stand before those of each sequence, or one number for all.
            holes: (n or less,) bool, of tokens that no other may see.

        Returns:
            (B t, C) float32
        """
        batch, heads = cache.shape[1:3]
        rows, alone = len(qkv), cache[:, :, :, :0]
        before = alone if prefix is None else prefix
        y = qkv.new_empty(rows, heads * self._width)
        places = (ctypes.c_int64 * batch)(*([*starts] * (batch // len(starts))))
        self._function(
            y.data_ptr(),
            qkv.data_ptr(),
            *(part.data_ptr() for part in cache.unbind(0)),
            *cache.stride()[1:3],
            *(part.data_ptr() for part in before.unbind(0)),
            before.shape[3],
            batch // before.shape[1],
            places,
            None if holes is None else holes.data_ptr(),
            batch,
            heads,
            rows // batch,
        )
        return y


@cache
def few_queries(width: int, tokens: int) -> FewQueries | None:
    """The function for heads of `width` and sequences of at most `tokens`; None where it cannot be compiled.

    `CC` names the compiler, as it does for make.
    """
    if width % LANES:
        return None
    compiler = shlex.split(os.environ.get("CC", "cc"))
    sizes = (f"-DWIDTH={width}", f"-DTOKENS={tokens}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = str(Path(folder) / "few_queries.so")
            words = [*compiler, *COMPILE, *sizes, str(SOURCE), "-o", whole, "-lm"]
            subprocess.run(words, check=True, capture_output=True, text=True)
            return FewQueries(ctypes.CDLL(whole).attend_few, width)
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = (said.strip() or str(error)).splitlines()[0]
        note(
            f"attention is not compiled and int8 takes up to a third longer (CC names a C compiler): {reason}"
        )
        return None
