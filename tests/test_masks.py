"""Masks on disk say what they hold, and cannot be shifted twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotate.errors import UserError
from annotate.masks import Encoding, mask_encoding, mask_texts, read_mask, shift, unshift, write_mask

IDS = np.array([[148, 177, 168, 156, 95], [129, 255, 0, 180, 255]], np.uint8)


def test_mask_round_trip_keeps_ids_and_encoding(tmp_path: Path) -> None:
    for encoding in Encoding:
        path = tmp_path / "deep" / f"{encoding}.png"
        write_mask(path, IDS, encoding)
        assert np.array_equal(read_mask(path, encoding), IDS)
        assert mask_encoding(path) is encoding
        with Image.open(path) as image:
            assert image.mode == "L"


def test_mask_in_the_other_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    write_mask(path, shift(IDS), Encoding.SHIFTED)
    with pytest.raises(UserError, match="is coco-stuff-shifted, but coco-stuff-raw is needed"):
        read_mask(path, Encoding.RAW)
    with pytest.raises(UserError, match="is coco-stuff-shifted"):
        read_mask(path, Encoding.RAW, foreign=Encoding.RAW)  # --encoding never overrides what the file says


def test_foreign_mask_needs_its_encoding_named(tmp_path: Path) -> None:
    path = tmp_path / "foreign.png"
    Image.fromarray(IDS).save(path)
    with pytest.raises(UserError, match="--encoding"):
        read_mask(path, Encoding.RAW)
    assert np.array_equal(read_mask(path, Encoding.RAW, foreign=Encoding.RAW), IDS)
    with pytest.raises(UserError, match="coco-stuff-raw is needed"):
        read_mask(path, Encoding.RAW, foreign=Encoding.SHIFTED)


def test_palette_mask_is_read_by_index(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.fromarray(IDS, mode="P")
    image.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    image.save(path)
    assert np.array_equal(read_mask(path, Encoding.RAW, foreign=Encoding.RAW), IDS)


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "not a readable PNG"), (b"not a png", "not a readable PNG"), (None, "no such mask")],
)
def test_unreadable_mask_is_one_line(tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=line):
        read_mask(path, Encoding.RAW)


def test_a_mask_with_a_damaged_first_chunk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, np.zeros((4, 5), np.uint8), Encoding.RAW)
    content = bytearray(path.read_bytes())
    content[11] = 0  # the length of the header
    path.write_bytes(content)
    for read in (mask_encoding, mask_texts, lambda one: read_mask(one, Encoding.RAW)):
        with pytest.raises(UserError, match=r"mask\.png: not a readable PNG"):
            read(path)


def test_truncated_and_colour_masks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 180, (50, 70), dtype=np.uint8)
    write_mask(path, noise, Encoding.RAW)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"cut\.png"):
        read_mask(path, Encoding.RAW)
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(UserError, match="mode RGB"):
        read_mask(path, Encoding.RAW)


def test_shift_by_hand() -> None:
    assert shift(IDS).tolist() == [[149, 178, 169, 157, 96], [130, 0, 1, 181, 0]]


def test_id_without_a_channel_names_the_n_labels_that_would_do() -> None:
    wood = np.array([[181, 255]], np.uint8)
    with pytest.raises(UserError, match="181 has no channel with n_labels 182; use --n-labels 183"):
        shift(wood)
    assert shift(wood, n_labels=183).tolist() == [[182, 0]]


@given(st.lists(st.sampled_from([*range(181), 255]), min_size=1, max_size=40))
def test_unshift_undoes_shift(ids: list[int]) -> None:
    raw = np.array([ids], np.uint8)
    assert np.array_equal(unshift(shift(raw)), raw)


def test_write_mask_refuses_what_is_no_mask(tmp_path: Path) -> None:
    for wrong in (IDS.astype(np.int64), IDS[None]):
        with pytest.raises(ValueError, match=r"\(H, W\) uint8"):
            write_mask(tmp_path / "m.png", wrong, Encoding.RAW)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
