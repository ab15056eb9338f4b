"""Label Studio's brush RLE: masks to and from the bit stream of a brush region, vectorised.

The stream (most significant bit first) is a header of 53 bits and then tokens, until all values are out:

    header   32 bits number of values N = H * W * 4, 5 bits word size - 1, four times 4 bits size - 1
    token    1 flag bit, 2 bits that choose one of the four sizes, that many bits of length - 1, then
             flag 1: one 8-bit value, which is repeated length times
             flag 0: length 8-bit values as they are

The values are row-major RGBA; the alpha channel is the mask.
Source: @thi.ng/rle-pack, which Label Studio's editor uses; label_studio_sdk `converter/brush.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

HEADER_BITS = 53
DEFAULT_SIZES = (3, 4, 8, 16)  # the only ones that Label Studio's editor and SDK write
VALUES_PER_TOKEN = 65536
_LONGEST_TOKEN = 27  # bits of the longest token that carries one value: 3 + 16 + 8
_CHUNK = 16384  # bytes looked at together: bounds the memory, and keeps it in the cache
_LONG_RUN = 24  # pixels; from here on a slice is quicker than scattered indices
_LONGEST_RUN = VALUES_PER_TOKEN // 4 + 1  # pixels whose alpha one token can hold


def decode(rle: Sequence[int] | bytes | NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The alpha channel of a brush region.

    Args:
        rle: the region's `rle`: bytes as a list of ints 0..255, as bytes or as a uint8 array.
        size: (H, W) of the region (`original_height`, `original_width`).

    Returns:
        (H, W) uint8 alpha. It is anti-aliased where a browser drew it: the mask is `alpha > 127`.

    Raises:
        ValueError: not such a stream, cut short, or made for another size. Nothing larger than a small
            multiple of the image is allocated, whatever the stream claims.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"brush: a mask of {height} x {width} pixels")
    wanted = height * width * 4
    content = _content(rle, (HEADER_BITS + wanted * _LONGEST_TOKEN) // 8 + 16)
    sizes = _read_header(content, size)
    padded = content + bytes(8)  # the windows below look a few bytes ahead
    stream = np.frombuffer(padded, np.uint8)
    table = _step_table(sizes)
    alpha = np.zeros(height * width, np.uint8)
    position, filled, end = HEADER_BITS, 0, len(content) * 8
    while filled < wanted:
        if position >= end:
            raise ValueError(f"brush: RLE ends after {filled} of {wanted} values")
        tokens = _read_tokens(padded, position, end, table, sizes)
        last = int(np.searchsorted(tokens.ends, wanted - filled)) + 1  # what follows is padding
        tokens = tokens.first(last)
        position, gained = tokens.stop, int(tokens.ends[-1])
        if filled + gained > wanted:
            raise ValueError(f"brush: RLE runs over its {wanted} values")
        if position > end:
            raise ValueError(
                f"brush: RLE is cut short in a token, after {filled + gained} of {wanted} values"
            )
        _paint(alpha, tokens, stream, filled)
        filled += gained
    tail = content[position // 8 :]
    if tail and (tail[0] & (255 >> position % 8) or any(tail[1:])):
        raise ValueError(f"brush: RLE goes on after its {wanted} values")
    return alpha.reshape(size)


def encode(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> list[int]:
    """A mask as the `rle` of a brush region.

    Args:
        mask: (H, W); bool, or uint8 alpha with 255 for full (0 and 1 would be all but invisible).

    Returns:
        The bytes as ints 0..255. All four channels hold the alpha, as in what a browser writes.

    Raises:
        ValueError: another shape or dtype, or no pixel.
    """
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8) or not mask.size or mask.size >= 2**30:
        raise ValueError(f"brush: a mask is (H, W) bool or uint8, got {mask.shape} {mask.dtype}")
    alpha = np.ascontiguousarray(mask).reshape(-1).view(np.uint8)
    starts = _run_starts(alpha)
    values = alpha[starts].astype(np.int64)
    if mask.dtype == np.bool_:
        values *= 255
    lengths = np.diff(starts, append=alpha.size) * 4
    if lengths.max() > VALUES_PER_TOKEN:
        pieces = -(-lengths // VALUES_PER_TOKEN)
        rest = lengths - (pieces - 1) * VALUES_PER_TOKEN
        lengths = np.full(pieces.sum(), VALUES_PER_TOKEN)
        lengths[np.cumsum(pieces) - 1] = rest
        values = np.repeat(values, pieces)
    choice = np.searchsorted([8, 16, 256], lengths)
    field = np.array(DEFAULT_SIZES)[choice]
    codes = ((4 + choice) << field | (lengths - 1)) << 8 | values
    return list(_pack(alpha.size * 4, codes, field + 11).tobytes())


@dataclass(frozen=True)
class _Tokens:
    """Some consecutive tokens; arrays of one entry a token."""

    runs: NDArray[np.bool_]  # flag 1
    lengths: Ints
    ends: Ints  # running sum of the lengths
    payloads: Ints  # bit positions of the (first) value

    @property
    def stop(self) -> int:
        """Bit position after the last token."""
        values = 1 if self.runs[-1] else int(self.lengths[-1])
        return int(self.payloads[-1]) + 8 * values

    def first(self, count: int) -> _Tokens:
        return _Tokens(self.runs[:count], self.lengths[:count], self.ends[:count], self.payloads[:count])


def _content(rle: Sequence[int] | bytes | NDArray[np.uint8], most: int) -> bytes:
    if not isinstance(rle, (list, tuple, bytes, bytearray, np.ndarray)):
        raise ValueError(f"brush: RLE is a list of bytes, got {type(rle).__name__}")
    if isinstance(rle, np.ndarray) and (rle.dtype != np.uint8 or rle.ndim != 1):
        raise ValueError(f"brush: RLE is a flat uint8 array, got {rle.shape} {rle.dtype}")
    if len(rle) > most:
        raise ValueError(f"brush: RLE of {len(rle)} bytes, more than an image of this size can need ({most})")
    if len(rle) * 8 < HEADER_BITS:
        raise ValueError(f"brush: RLE of {len(rle)} bytes has no room for its header")
    try:
        return bytes(rle)
    except (TypeError, ValueError) as error:
        raise ValueError("brush: RLE holds something else than whole numbers from 0 to 255") from error


def _read_header(content: bytes, size: tuple[int, int]) -> tuple[int, ...]:
    header = int.from_bytes(content[:7], "big") >> 3  # 53 of 56 bits
    height, width = size
    if header >> 21 != height * width * 4:
        raise ValueError(
            f"brush: RLE claims {header >> 21} values, but {height} x {width} RGBA has {height * width * 4}"
        )
    if (header >> 16 & 31) != 7:
        raise ValueError(f"brush: RLE of {(header >> 16 & 31) + 1}-bit values; only 8 bits are known")
    return tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0))


@lru_cache(maxsize=8)
def _step_table(sizes: tuple[int, ...]) -> bytes:
    """How many bits a token takes, by the 8 bits that it starts with; 0 where 8 bits don't tell."""
    steps = []
    for start in range(256):
        bits = sizes[start >> 5 & 3]
        if start >= 128:
            steps.append(3 + bits + 8)
        else:
            literal = 3 + bits + 8 * ((start & 31) >> (5 - bits)) + 8 if bits <= 5 else 0
            steps.append(literal if literal < 256 else 0)
    return bytes(steps)


def _read_tokens(content: bytes, position: int, end: int, table: bytes, sizes: tuple[int, ...]) -> _Tokens:
    """The tokens that start at `position` and in the bytes after it, up to `_CHUNK` of them.

    A token's place is known only when the one before it is read. So the step to the next token is looked
    up for every bit of the chunk at once, which leaves one addition a token to the loop.
    """
    base = position // 8
    count = min(_CHUNK, end // 8 - base)
    pairs: NDArray[np.uint16] = np.ndarray(count, ">u2", content, base, (1,)).astype(
        np.uint16
    )  # 16 bits from each byte on
    octets = np.empty((count, 8), np.uint8)  # 8 bits from each bit on
    for bit in range(8):
        octets[:, bit] = pairs >> (8 - bit)
    steps = octets.tobytes().translate(table)

    def long_step(at: int) -> int:
        place = base + at // 8
        head = int.from_bytes(content[place : place + 4], "big") >> (13 - at % 8)
        bits = sizes[head >> 16 & 3]
        return 3 + bits + 8 * ((head & 0xFFFF) >> (16 - bits)) + 8

    at, bits = position - base * 8, count * 8
    marks = bytearray(bits)
    while at < bits:
        marks[at] = 1
        at += steps[at] or long_step(at)
    places = np.flatnonzero(np.frombuffer(marks, np.bool_)) + base * 8
    windows: NDArray[np.uint32] = np.ndarray(base + count, ">u4", content, 0, (1,))
    heads = windows[places >> 3].astype(np.int64) >> (13 - (places & 7))  # 19 bits count: 3 + 16
    field = np.array(sizes)[heads >> 16 & 3]
    lengths = ((heads & 0xFFFF) >> (16 - field)) + 1
    return _Tokens(heads & 2**18 > 0, lengths, np.cumsum(lengths), places + field + 3)


def _paint(alpha: NDArray[np.uint8], tokens: _Tokens, stream: NDArray[np.uint8], filled: int) -> None:
    """Write the alpha values of the tokens.

    Value 4 i + 3 is the alpha of pixel i, so values a to b - 1 hold that of pixels a // 4 to b // 4 - 1.
    """
    bounds = np.append(0, tokens.ends) + filled >> 2
    first, counts = bounds[:-1], np.diff(bounds)
    single = tokens.runs | (tokens.lengths == 1)
    values = _values_at(stream, tokens.payloads)
    one = np.flatnonzero((counts == 1) & single)
    alpha[first[one]] = values[one]
    many = np.flatnonzero((counts > 1) & single & (values > 0))  # 0 is there already
    short = counts[many] < _LONG_RUN
    run, long = many[short], many[~short]
    alpha[_spread(first[run], counts[run])] = np.repeat(values[run], counts[run])
    view = memoryview(alpha.data)  # its slices cost half of an array's
    full = {value: bytes([value]) * _LONGEST_RUN for value in set(values[long].tolist())}
    places = zip(first[long].tolist(), counts[long].tolist(), values[long].tolist(), strict=True)
    for start, pixels, value in places:
        view[start : start + pixels] = full[value][:pixels]
    if single.all():
        return
    raw = np.flatnonzero(~single & (counts > 0))
    pixels = _spread(first[raw], counts[raw])
    # bit position of the token's value 0 of the image, were it that long
    origin = tokens.payloads[raw] - 8 * (tokens.ends[raw] - tokens.lengths[raw] + filled)
    alpha[pixels] = _values_at(stream, np.repeat(origin, counts[raw]) + 8 * (4 * pixels + 3))


def _values_at(stream: NDArray[np.uint8], positions: Ints) -> NDArray[np.uint8]:
    """The 8 bits that start at each bit position."""
    place, shift = positions >> 3, (positions & 7).astype(np.uint8)
    high = stream[place] << shift
    low = stream[place + 1].astype(np.uint16) >> (8 - shift)
    values: NDArray[np.uint8] = high | low.astype(np.uint8)
    return values


def _spread(first: Ints, counts: Ints) -> Ints:
    """first[0], first[0] + 1, ... (counts[0] of them), first[1], ..."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    indices: Ints = np.repeat(first - ends + counts, counts) + np.arange(total)
    return indices


def _run_starts(flat: NDArray[np.uint8]) -> Ints:
    """Indices at which a run of equal values starts, 0 included."""
    change = np.zeros(-(-flat.size // 8) * 8, np.bool_)
    change[0] = True
    np.not_equal(flat[1:], flat[:-1], out=change[1 : flat.size])
    words = np.flatnonzero(change.view(np.uint64))  # changes are rare: look at eight at a time
    row, column = np.nonzero(change.reshape(-1, 8)[words])
    return words[row] * 8 + column


def _pack(total: int, codes: Ints, bits: Ints) -> NDArray[np.uint8]:
    """The header and then each code, written with that many bits (at least 8, at most 33)."""
    ends = np.cumsum(bits) + HEADER_BITS
    places = ends - bits
    header = total
    for value, width in ((7, 5), *((one - 1, 4) for one in DEFAULT_SIZES)):
        header = header << width | value
    length = -(-int(ends[-1]) // 8)
    stream = np.zeros(length + 5, np.uint8)
    stream[:7] = np.frombuffer((header << 3).to_bytes(7, "big"), np.uint8)
    aligned = codes << (40 - (places & 7) - bits)  # five bytes from the code's first byte on
    byte = places >> 3
    for column in range(5):
        # no two codes start in one byte, so no index comes twice in one go
        stream[byte + column] |= (aligned >> (32 - 8 * column)).astype(np.uint8)
    return stream[:length]
