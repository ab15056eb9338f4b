"""The brush codec against Label Studio's own, against a browser's stroke, and against damage."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.converter import brush as theirs
from numpy.typing import NDArray

from annotate.brush import DEFAULT_SIZES, decode, encode

GOLDEN = Path(__file__).parent / "golden" / "browser-annotation.json"
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
# few values, so that runs of every length come about; all values, so that none do
ALPHAS = SHAPES.flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.one_of(st.sampled_from([0, 255]), st.integers(0, 255)))
)


def soft_disc(height: int, width: int) -> NDArray[np.uint8]:
    """A disc with an anti-aliased edge."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height * 0.45, x - width * 0.55)
    alpha: NDArray[np.uint8] = np.round(
        np.clip(0.3 * min(height, width) - distance + 0.5, 0, 1) * 255
    ).astype(np.uint8)
    return alpha


def written(
    total: int,
    tokens: Sequence[tuple[int, int, list[int]]],
    sizes: Sequence[int] = DEFAULT_SIZES,
    word: int = 8,
) -> list[int]:
    """A stream of (repeat, choice, values) tokens, written bit by bit: repeat 0 means values as they are."""
    parts = [f"{total:032b}{word - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    for repeat, choice, values in tokens:
        length = repeat or len(values)
        parts.append(f"{repeat > 0:b}{choice:02b}{length - 1:0{sizes[choice]}b}")
        parts += [f"{value:08b}" for value in values]
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_a_browsers_stroke_has_its_pixels() -> None:
    golden = json.loads(GOLDEN.read_text())
    rle, (height, width) = golden["result"][0]["value"]["rle"], golden["size"]
    alpha = decode(rle, (height, width))
    assert (alpha > 127).sum() == 9431
    assert len(np.unique(alpha)) > 200  # anti-aliased
    assert (alpha == theirs.decode_rle(rle).reshape(height, width, 4)[..., 3]).all()
    assert encode(alpha) == rle  # to the byte what the browser wrote


@settings(deadline=None)
@given(ALPHAS)
def test_each_reads_what_the_other_writes(alpha: NDArray[np.uint8]) -> None:
    ours = encode(alpha)
    height, width = alpha.shape
    assert (theirs.decode_rle(ours).reshape(height, width, 4) == alpha[..., None]).all()
    assert (decode(ours, (height, width)) == alpha).all()
    assert (decode(theirs.mask2rle(alpha), (height, width)) == alpha).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (257, 131), (700, 500)])
def test_soft_discs_and_hard_masks(size: tuple[int, int]) -> None:
    alpha = soft_disc(*size)
    for content in (encode(alpha), bytes(encode(alpha)), np.array(encode(alpha), np.uint8)):
        assert (decode(content, size) == alpha).all()
    hard = alpha > 127
    assert (decode(encode(hard), size) == hard * np.uint8(255)).all()
    assert encode(hard) == encode(hard * np.uint8(255))
    assert encode(hard[:, ::2]) == encode(hard[:, ::2].copy())  # not contiguous


@pytest.mark.parametrize("pixels", [2, 4, 5, 64, 65, 16384, 16385, 40000])
def test_every_run_length_class(pixels: int) -> None:
    alpha = np.full((1, pixels + 2), 9, np.uint8)
    alpha[0, 1:-1] = 200
    assert (theirs.decode_rle(encode(alpha)).reshape(-1, 4) == alpha.reshape(-1, 1)).all()
    assert (decode(theirs.mask2rle(alpha), (1, pixels + 2)) == alpha).all()


def test_image2rle_and_colours_that_differ_from_alpha(tmp_path: Path) -> None:
    from PIL import Image

    mask = soft_disc(50, 70)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rle, width, height = theirs.image2rle(tmp_path / "mask.png")
    assert (decode(rle, (height, width)) == (mask > 128) * np.uint8(255)).all()
    rgba = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    rgba[10:40, 20:60, :3] = 255  # what a tinted stroke looks like
    rgba[10:40, 20:60, 3] = mask[10:40, 20:60]
    assert (decode(theirs.encode_rle(rgba.ravel()), (50, 70)) == rgba[..., 3]).all()


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], tuple[int, int], list[int]]:
    """Any header and any tokens that an encoder may choose, the values that they stand for, and the size."""
    sizes = draw(st.lists(st.integers(1, 16), min_size=4, max_size=4))
    height, width = draw(SHAPES)
    total = height * width * 4
    tokens, values = [], list[int]()
    while len(values) < total:
        choice = draw(st.integers(0, 3))
        length = draw(st.integers(1, min(2 ** sizes[choice], total - len(values))))
        if draw(st.booleans()):
            tokens.append((length, choice, [draw(st.integers(0, 255))]))
            values += tokens[-1][2] * length
        else:
            seed = draw(st.integers(0, 2**32 - 1))
            tokens.append((0, choice, np.random.default_rng(seed).integers(0, 256, length).tolist()))
            values += tokens[-1][2]
    return written(total, tokens, sizes), (height, width), values


@settings(deadline=None)
@given(streams())
def test_any_header_and_any_tokens(stream: tuple[list[int], tuple[int, int], list[int]]) -> None:
    rle, size, values = stream
    assert (decode(rle, size).reshape(-1) == values[3::4]).all()


def test_literals_longer_than_a_chunk() -> None:
    size = (300, 400)
    values = np.random.default_rng(1).integers(0, 256, 300 * 400 * 4).tolist()
    tokens = [(0, 3, values[at : at + 65536]) for at in range(0, len(values), 65536)]
    assert (decode(written(len(values), tokens), size).reshape(-1) == values[3::4]).all()


GOOD = written(12, [(12, 1, [7])])
FAULTS: dict[str, tuple[Any, str]] = {
    "nothing": ([], "no room for its header"),
    "cut in the header": (GOOD[:6], "no room for its header"),
    "cut before the first token": (GOOD[:7], "ends after 0 of 12|cut short"),
    "cut in a token": (GOOD[:8], "cut short|ends after"),
    "cut between tokens": (written(12, [(8, 0, [1])])[:-1], "ends after|cut short"),
    "too few values": (written(12, [(8, 0, [1])]), "ends after|cut short"),
    "too many values": (written(12, [(16, 1, [1])]), "runs over its 12"),
    "a literal over the end": (written(12, [(0, 1, [1] * 14)]), "runs over its 12"),
    "goes on": ([*GOOD, 0, 1], "goes on after its 12"),
    "far too long": ([*GOOD, *[0] * 10_000], "more than an image of this size can need"),
    "4 billion values": (
        written(2**32 - 1, [(12, 1, [7])]),
        "claims 4294967295 values, but 1 x 3 RGBA has 12",
    ),
    "another image": (written(16, [(16, 1, [7])]), "claims 16 values, but 1 x 3"),
    "16-bit values": (written(12, [(12, 1, [7])], word=16), "16-bit values"),
    "above a byte": ([*GOOD, 256], "whole numbers from 0 to 255"),
    "below zero": ([*GOOD, -1], "whole numbers from 0 to 255"),
    "huge": ([*GOOD, 10**30], "whole numbers from 0 to 255"),
    "fractions": ([*GOOD, 1.0], "whole numbers from 0 to 255"),
    "nan": ([*GOOD, float("nan")], "whole numbers from 0 to 255"),
    "lists": ([GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD], "whole numbers from 0 to 255"),
    "null": (None, "a list of bytes, got NoneType"),
    "text": ("AAAA", "a list of bytes, got str"),
    "a number": (10**12, "a list of bytes, got int"),
    "an object": ({"0": 1}, "a list of bytes, got dict"),
    "another array": (np.array(GOOD, np.int64), "flat uint8 array"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_stream_is_one_clear_error(fault: str) -> None:
    assert decode(GOOD, (1, 3)).tolist() == [[7, 7, 7]]
    content, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        decode(content, (1, 3))


def test_padding_is_no_damage() -> None:
    assert decode([*GOOD, 0, 0], (1, 3)).tolist() == [[7, 7, 7]]


@pytest.mark.parametrize(
    "mask", [np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8), np.ones((2, 2), np.float32)]
)
def test_what_is_no_mask_is_refused(mask: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W\) bool or uint8"):
        encode(mask)
    with pytest.raises(ValueError, match="0 x 4 pixels"):
        decode(GOOD, (0, 4))


@settings(max_examples=300, deadline=2000)
@given(st.binary(max_size=300), st.lists(st.integers(1, 16), min_size=4, max_size=4), SHAPES, st.booleans())
def test_random_bytes_never_crash(
    content: bytes, sizes: list[int], size: tuple[int, int], headed: bool
) -> None:
    if headed:
        content = bytes(written(size[0] * size[1] * 4, [], sizes)[:6]) + content
    try:
        alpha = decode(content, size)
    except ValueError as error:
        if not str(error).startswith("brush: "):
            raise
    else:
        assert alpha.shape == size
        assert alpha.dtype == np.uint8


@pytest.mark.parametrize("seed", range(4))
def test_memory_is_bounded_by_the_image(seed: int) -> None:
    """Random tokens behind a sound header, the longest stream that is looked at, and the worst claims."""
    size = 128, 160
    pixels, total = size[0] * size[1], size[0] * size[1] * 4
    noise = np.random.default_rng(seed).integers(0, 256, total * 3, np.uint8).tobytes()
    header = bytes(written(total, [])[:6])
    short = written(total, [(0, 3, [9])] * total)  # 27 bits for each value: no encoder is worse
    for content in (
        header + noise,
        header + b"\xff" * 5000,
        header + bytes(5000),
        bytes(short),
        bytes(10**9 // 64),
    ):
        tracemalloc.start()
        try:
            decode(content, size)
        except ValueError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 40 * pixels + 8_000_000
