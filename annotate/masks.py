"""Masks on disk: mode-L PNGs that say which encoding they hold."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from annotate.errors import UserError
from annotate.files import whole_file

CHUNK = "encoding"
LEARNT_FROM = "hand-masks.json"  # in a model's folder: the digest of each hand mask that it learnt from
MEAN_CONFIDENCE = (
    "mean-confidence"  # text chunk of a pseudo mask: how sure the model is, 0 to 1 over its pixels
)


_PNG = b"\x89PNG\r\n\x1a\n"


class Encoding(StrEnum):
    """What the numbers of a mask mean."""

    RAW = "coco-stuff-raw"  # COCO-Stuff ids 0..181, 255 = unlabelled
    SHIFTED = "coco-stuff-shifted"  # raw + 1, 0 = unlabelled


def write_mask(
    path: Path, ids: NDArray[np.uint8], encoding: Encoding, about: Mapping[str, str] | None = None
) -> None:
    """Write a mask, whole or not at all.

    Args:
        path: the PNG.
        ids: (H, W) uint8.
        encoding: what the ids are; stored in the PNG's text chunk `encoding`.
        about: more text chunks; in the same file, so that they can never belong to another mask.
    """
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise ValueError(f"a mask is (H, W) uint8, got {ids.shape} {ids.dtype}")
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, encoding.value)
    for name, text in (about or {}).items():
        info.add_text(name, text)
    with whole_file(path) as temporary:
        image = Image.fromarray(ids, mode="L")
        # runs are what a mask is made of: half the time of the default, and a smaller file
        image.save(temporary, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE)


def mask_encoding(path: Path) -> Encoding | None:
    """Which encoding a mask says it has; None for a foreign PNG without the chunk."""
    with _open(path) as image:
        value = image.info.get(CHUNK)
    return Encoding(value) if value in set(Encoding) else None


def mask_texts(path: Path) -> dict[str, str]:
    """The text chunks of a mask; no pixel is read.

    Raises:
        UserError: no file, not an image, or one that is cut off.
    """
    with _open(path) as image:
        _check_end(path)
        return {str(name): text for name, text in image.info.items() if isinstance(text, str)}


def mask_digest(path: Path) -> str:
    """SHA-256 of what a mask shows, whatever its text chunks say of it: no pixel is decoded.

    A mask that another program wrote anew has another digest, even with the same pixels.

    Raises:
        UserError: no file, or not a PNG.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run the step that wrote it") from error
    found, place = hashlib.sha256(), len(_PNG)
    while content.startswith(_PNG) and place + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind in (b"IHDR", b"PLTE", b"IDAT"):
            found.update(content[place : place + 8 + length])
        if kind == b"IEND":
            return found.hexdigest()
        place += length + 12
    raise UserError(f"{path}: not a whole PNG; delete it and run the step that wrote it")


def mask_digests(folder: Path) -> dict[str, str]:
    """The digest of every mask in a folder, by key.

    Raises:
        UserError: a file that is not a PNG.
    """
    found = (path for path in sorted(folder.rglob("*.png")) if folder.is_dir())
    return {path.relative_to(folder).with_suffix("").as_posix(): mask_digest(path) for path in found}


def read_levels(path: Path) -> NDArray[np.uint8]:
    """A confidence PNG as (H, W) uint8, confidence * 255.

    Raises:
        UserError: no file, or not such a PNG.
    """
    with _open(path) as image:
        try:
            if image.mode == "L" and image.info.get(CHUNK) == "confidence":
                return np.array(image)
        except (OSError, SyntaxError, ValueError, struct.error):
            pass  # damaged, as said below
    raise UserError(f"{path}: not a confidence map; delete it and run `tool segment pseudo-label` again")


def read_mask(path: Path, encoding: Encoding, foreign: Encoding | None = None) -> NDArray[np.uint8]:
    """Read a mask as (H, W) uint8 ids in `encoding`.

    Args:
        path: a PNG of mode L (palette PNGs are read by index).
        encoding: the encoding that the caller needs.
        foreign: what a PNG without the chunk holds (`--encoding`).

    Raises:
        UserError: no file, not an image, a wrong mode, or another encoding than the one asked for.
    """
    with _open(path) as image:
        found = image.info.get(CHUNK)
        if image.mode not in ("L", "P"):
            raise UserError(
                f"{path}: a mask is a PNG of mode L, got mode {image.mode}; export it as 8-bit greyscale"
            )
        try:
            ids = np.array(image, dtype=np.uint8)
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise UserError(
                f"{path}: damaged mask ({error}); put a sound one there, or delete it and run the step that wrote it"
            ) from error
    if found is None:
        if foreign is None:
            raise UserError(
                f"{path}: does not say whether it is raw or shifted; add --encoding raw or shifted where the command "
                f"has it, or write it into the file: the text chunk {CHUNK!r}, {Encoding.RAW} or {Encoding.SHIFTED}"
            )
        found = foreign.value
    if found != encoding.value:
        raise UserError(f"{path}: is {found}, but {encoding.value} is needed here")
    return ids


def shift(raw: NDArray[np.uint8], n_labels: int = 182) -> NDArray[np.uint8]:
    """Raw ids to shifted ids: raw + 1, with 255 (unlabelled) becoming 0.

    Args:
        raw: (H, W) raw COCO-Stuff ids.
        n_labels: channels of the one-hot mask; shifted ids are 0..n_labels - 1.

    Raises:
        UserError: an id that has no channel; the line names the n_labels that would have one.

    Source: taming-transformers, taming/data/sflckr.py (shift_segmentation).
    """
    shifted: NDArray[np.uint8] = raw + np.uint8(1)  # uint8 wraps 255 to 0
    if shifted.size and int(shifted.max()) >= n_labels:
        worst = int(shifted.max()) - 1
        raise UserError(
            f"raw id {worst} has no channel with n_labels {n_labels}; "
            f"use --n-labels {worst + 2} or give the class another id"
        )
    return shifted


def unshift(shifted: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shifted ids back to raw ids; 0 becomes 255."""
    raw: NDArray[np.uint8] = shifted - np.uint8(1)
    return raw


def _check_end(path: Path) -> None:
    """A PNG that was cut off lacks its last chunk."""
    with path.open("rb") as stream:
        stream.seek(-min(12, path.stat().st_size), 2)
        if stream.read() != b"\0\0\0\0IEND\xaeB`\x82":
            raise UserError(
                f"{path}: cut off; put a sound one there, or delete it and run the step that wrote it"
            )


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such mask") from error
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:  # ValueError: a damaged first chunk
        raise UserError(
            f"{path}: not a readable PNG; put a sound one there, or delete it and run the step that wrote it"
        ) from error
