"""Paintings: what a folder holds, how one is read, and the workspace's list of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from annotate.errors import UserError
from annotate.files import write_whole
from annotate.progress import note, progress
from annotate.workspace import Workspace, safe_key

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
THUMBNAIL = 16  # pixels
MAX_PIXELS = 100_000_000  # 300 MB as RGB; a larger one is reported with the size that would do
LARGE = 10_000_000  # pixels
_large = threading.Lock()
_EXIF_ORIENTATION = 0x0112
# What Pillow raises for damaged files, by the format; `UserError` says it in one line.
_DAMAGED = (
    *(OSError, EOFError, MemoryError, struct.error),
    *(SyntaxError, ValueError, TypeError, ArithmeticError, LookupError),
)
# what every browser shows and Label Studio takes, by the format that the content really has
_BROWSER_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
}

Image.MAX_IMAGE_PIXELS = None  # `_decode` has its own limit, checked before any pixel is read


@dataclass(frozen=True)
class Painting:
    """One painting of the workspace."""

    key: str  # path relative to the given folder, without suffix
    path: str  # absolute, or relative to the workspace where it lies inside
    size: tuple[int, int]  # (H, W) in pixels, upright
    sha256: str  # of the file's bytes
    split: str  # "hand": a person annotates it; "rest": the model does

    def file(self, workspace: Workspace) -> Path:
        return workspace.root / self.path


@dataclass(frozen=True)
class Shown:
    """A painting as a browser gets it."""

    content: bytes
    suffix: str  # with the dot
    size: tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class Scan:
    """What a folder holds."""

    paintings: tuple[Painting, ...]  # by key
    problems: tuple[str, ...]  # one line for each file that was left out
    thumbnails: Mapping[str, NDArray[np.uint8]]  # (THUMBNAIL, THUMBNAIL, 3), of those that were decoded now


def scan(folder: Path, workspace: Workspace, known: Mapping[str, Painting] | None = None) -> Scan:
    """List the paintings of a folder and its subfolders, each decoded once.

    Args:
        folder: where the paintings lie.
        workspace: paths inside it are kept relative to it; files of its own are not paintings.
        known: what earlier scans found; a file whose bytes did not change is not decoded again.

    Raises:
        UserError: no such folder, no images in it, or two files with one key.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the paintings")
    root = folder.resolve()
    if not _is_writable(str(root)):
        raise UserError(f"{str(root)!r}: a folder with unprintable characters in its path; rename it")
    by_key, problems = _keys(root, _files(folder, workspace))
    known = known or {}
    thumbnails: dict[str, NDArray[np.uint8]] = {}

    def look(item: tuple[str, Path]) -> Painting | str:
        key, path = item
        try:
            if path.exists() and not path.is_file():  # to read a pipe would never end
                return f"{path}: neither a file nor a folder; take it away"
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            seen = known.get(key)
            if seen and seen.sha256 == digest:
                size = seen.size
            else:
                size, thumbnails[key] = _inspect(content, path)
        except UserError as error:
            return error.message
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
        return Painting(key, _place(path, workspace), size, digest, seen.split if seen else "rest")

    looked = []
    with ThreadPoolExecutor() as pool, progress("Reading the paintings", len(by_key)) as advance:
        for result in pool.map(look, by_key.items()):
            looked.append(result)
            advance()
    good = tuple(one for one in looked if isinstance(one, Painting))
    return Scan(good, (*problems, *(one for one in looked if isinstance(one, str))), thumbnails)


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """A painting as (THUMBNAIL, THUMBNAIL, 3), stretched to a square: mean colours, place by place."""
    return _inspect(_content(path), path)[1]


def load_painting(path: Path) -> NDArray[np.uint8]:
    """Read a painting as (H, W, 3) uint8 sRGB, upright, whatever its file holds.

    EXIF rotation is applied, transparency lies on white, CMYK goes through its own colour profile where it
    has one, 16-bit greyscale is scaled to 8.

    Raises:
        UserError: missing, damaged, or larger than MAX_PIXELS.
    """
    return _decode(_content(path), path)


def browser_bytes(path: Path, max_side: int = 0) -> Shown:
    """A painting as a browser and Label Studio can show it.

    The file's own bytes where they will do; otherwise (TIFF, CMYK, 16 bit, EXIF rotation, animation) a PNG
    made from what `load_painting` reads, so that masks drawn in the browser fit the painting on disk.

    Args:
        path: its file.
        max_side: a longer side is scaled down to so many pixels, as a JPEG; 0 scales nothing.

    Raises:
        UserError: missing or damaged.
    """
    content = _content(path)
    suffix = path.suffix.lower()
    with _opened(content, path) as image:
        shown = image.mode in ("RGB", "L", "RGBA", "P", "1") and not getattr(image, "is_animated", False)
        upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        named_right = suffix in _BROWSER_SUFFIXES.get(image.format or "", ())
        width, height = image.size
        if max_side and max(width, height) > max_side:
            return _scaled(image, path, max_side)
    if shown and upright and named_right:
        return Shown(content, suffix, (height, width))
    pixels = _decode(content, path)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
    return Shown(buffer.getvalue(), ".png", (pixels.shape[0], pixels.shape[1]))


def read_index(workspace: Workspace) -> dict[str, Painting]:
    """The workspace's paintings by key, in the order of the list.

    Raises:
        UserError: no list yet, or a damaged line.
    """
    if not workspace.index_file.exists():
        raise UserError(f"{workspace.root}: no paintings yet; run `tool annotate push PAINTINGS` first")
    found = {}
    for number, line in enumerate(workspace.index_file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            height, width = row["size"]
            key = safe_key(row["key"])
            found[key] = Painting(key, row["path"], (int(height), int(width)), row["sha256"], row["split"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{workspace.index_file}:{number}: damaged ({error}); delete it and push again"
            ) from error
    return found


def write_index(workspace: Workspace, paintings: Iterable[Painting]) -> None:
    """Write `paintings.jsonl`, sorted by key, whole or not at all."""
    rows = sorted(paintings, key=lambda one: one.key)
    write_whole(
        workspace.index_file, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in rows)
    )


def _files(folder: Path, workspace: Workspace) -> list[Path]:
    """All image files below a folder, sorted; hidden ones and the workspace's own results are none."""
    root = folder.resolve()
    own = {
        (workspace.root / name).resolve()
        for name in ("masks", "models", "samples", "compositions", "reports")
    }
    files = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (Path(parent) / name).resolve() not in own
        )
        for link in (Path(parent) / name for name in folders if (Path(parent) / name).is_symlink()):
            note(
                f"{str(link)!r}: a link to a folder, which is not followed; move the folder there to have it"
            )
        files += [Path(parent) / name for name in sorted(names) if name[0] != "."]
    files = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(
            f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))}); give the folder with the paintings"
        )
    return files


def _keys(root: Path, files: Iterable[Path]) -> tuple[dict[str, Path], list[str]]:
    """The files by key, and one line for each whose name cannot be a key."""
    by_key: dict[str, Path] = {}
    problems = []
    for path in files:
        key = path.relative_to(root).with_suffix("").as_posix()
        if not _is_writable(key):
            problems.append(f"{str(path)!r}: a name with unprintable characters; rename it")
            continue
        try:
            safe_key(key)
        except UserError as error:
            problems.append(f"{path}: {error.message}")
            continue
        if key in by_key:
            raise UserError(f"{by_key[key]} and {path} share the key {key!r}; rename one of them")
        by_key[key] = path
    return by_key, problems


def _is_writable(name: str) -> bool:
    """Whether a name has no line breaks or other control characters, and no bytes that are not UTF-8.

    `str.isprintable` asks for more: the joiners of emoji, Persian and Hindi, and a Mac's screenshots, whose names have
    a narrow space, would not pass.
    """
    return not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in name)


def _place(path: Path, workspace: Workspace) -> str:
    """How the list names a file: relative to the workspace inside it, so that it can move as a whole."""
    root = workspace.root.resolve()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); put the painting back or push again"
        ) from error


def _inspect(content: bytes, path: Path) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Upright (H, W), and the thumbnail. All of the file is read, so that damage shows.

    A JPEG is decoded at an eighth of its size, which takes half the time. Other large images are decoded one at a
    time, however many cores there are: each takes some 25 bytes a pixel.
    """
    with _opened(content, path) as image, _one_at_a_time(image):
        size = _upright_size(image)
        # other formats take no notice
        image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        small = _upright_rgb(image, path).resize(
            (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0
        )
    return size, np.asarray(small)


def _one_at_a_time(image: Image.Image) -> contextlib.AbstractContextManager[object]:
    small = image.format in ("JPEG", "MPO") or image.width * image.height <= LARGE
    return contextlib.nullcontext() if small else _large


def _scaled(image: Image.Image, path: Path, max_side: int) -> Shown:
    """The painting with a longer side of `max_side`, as a JPEG that keeps its colour edges."""
    height, width = (max(1, round(side * max_side / max(image.size))) for side in _upright_size(image))
    image.draft("RGB", (max_side, max_side))  # a JPEG need not be decoded at its full size
    small = _upright_rgb(image, path).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=92, subsampling=0)
    return Shown(buffer.getvalue(), ".jpg", (height, width))


def _decode(content: bytes, path: Path) -> NDArray[np.uint8]:
    with _opened(content, path) as image:
        return np.asarray(_upright_rgb(image, path))


@contextlib.contextmanager
def _opened(content: bytes, path: Path) -> Iterator[Image.Image]:
    """The image in some bytes, not decoded yet; whatever is wrong with it is one line."""
    if not content:
        raise UserError(f"{path}: empty file; copy it again from its source")
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                scale = (MAX_PIXELS / (width * height)) ** 0.5
                raise UserError(
                    f"{path}: {width} x {height} is {width * height / 1e6:.0f} megapixels, more than "
                    f"{MAX_PIXELS / 1e6:.0f}; scale it to {int(width * scale)} x {int(height * scale)} or less"
                )
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:  # its own words are a place in memory
        raise UserError(
            f"{path}: not a readable image (of no kind that is known); copy it again from its source"
        ) from error
    except _DAMAGED as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({said}); copy it again from its source") from error


def _upright_rgb(image: Image.Image, path: Path) -> Image.Image:
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image), path)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) after the rotation that EXIF asks for."""
    if image.format == "TIFF":  # Pillow turns it itself, the size at once and the pixels when they are read
        image.load()
    width, height = image.size
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "CMYK" and "icc_profile" in image.info:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            converted = ImageCms.profileToProfile(
                image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except ImageCms.PyCMSError:
            pass  # a damaged profile: the plain conversion below
    if image.mode.startswith("I"):  # 16 bits of grey, in I;16 or in I
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError(f"{path}: 32-bit greyscale; export it with 8 or 16 bits a channel")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{path}: floating-point greyscale; export it with 8 or 16 bits a channel")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
