"""Paintings of every format that a folder may hold, shown as they were painted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Painter
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

from annotate import paintings
from annotate.errors import UserError
from annotate.paintings import (
    browser_bytes,
    load_painting,
    scan,
    thumbnail,
)
from annotate.workspace import Workspace

SIZE = (30, 44)
ORIENTATION = 0x0112


@pytest.fixture
def pixels(tmp_path: Path, paint: Painter) -> NDArray[np.uint8]:
    return paint(tmp_path / "plain.png", SIZE, 5)


def only(tmp_path: Path, name: str) -> Path:
    """A folder for one file."""
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    return folder / name


def shown(path: Path) -> NDArray[np.uint8]:
    """What a browser shows of what is sent to it; browsers honour EXIF rotation, Pillow does not."""
    sent = browser_bytes(path)
    with Image.open(io.BytesIO(sent.content)) as image:
        assert sent.size == (image.height, image.width)
        assert f".{image.format}".lower().replace("jpeg", "jpg") == sent.suffix.replace("jpeg", "jpg")
        assert image.getexif().get(ORIENTATION, 1) == 1
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp", "a.bmp", "a.tif", "a.TIFF", "a.gif"])
def test_every_format_is_read_and_shown_alike(tmp_path: Path, pixels: NDArray[np.uint8], name: str) -> None:
    path = only(tmp_path, name)
    Image.fromarray(pixels).save(path)
    read = load_painting(path)
    assert read.shape == (*SIZE, 3)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - pixels).mean() < 12  # GIF has few colours, JPEG few details
    assert np.array_equal(shown(path), read)
    (found,) = scan(path.parent, Workspace(tmp_path)).paintings
    assert (found.key, found.size) == ("a", SIZE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])  # Pillow turns TIFFs itself
@pytest.mark.parametrize("turn", range(1, 9))
def test_rotation_in_exif_is_applied_once(
    tmp_path: Path, pixels: NDArray[np.uint8], turn: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    path = only(tmp_path, f"a{suffix}")
    Image.fromarray(pixels).save(path, exif=exif)
    flat = pixels[:, ::-1] if turn in (2, 4, 5, 7) else pixels
    # number of quarter turns to the left that put each orientation upright, after mirroring
    upright = np.rot90(flat, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[turn])
    assert np.array_equal(load_painting(path), upright)
    assert np.array_equal(shown(path), upright)
    (found,) = scan(path.parent, Workspace(tmp_path)).paintings
    assert found.size == upright.shape[:2]
    height, width = browser_bytes(path, SIZE[1] // 2).size
    assert (height > width) == (upright.shape[0] > upright.shape[1])


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 900), (900, 3)])
def test_a_tiny_or_narrow_jpeg_is_read(tmp_path: Path, paint: Painter, size: tuple[int, int]) -> None:
    paint(only(tmp_path, "a.jpg"), size)
    found = scan(tmp_path / "folder", Workspace(tmp_path / "w"))
    assert [one.size for one in found.paintings] == [size]
    assert found.problems == ()


@pytest.mark.parametrize("error", [TypeError, ZeroDivisionError, KeyError, IndexError])
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """As a TIFF whose tags hold a fraction where a whole number belongs does."""
    path = only(tmp_path, "a.png")
    paint(path)

    def fail(self: Image.Image) -> None:
        raise error("1/2")

    monkeypatch.setattr(PngImageFile, "load", fail)
    (line,) = scan(path.parent, Workspace(tmp_path)).problems
    assert "a.png: not a readable image" in line


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[:, :20] = (200, 30, 10, 255)
    rgba[:, 20:30] = (200, 30, 10, 128)
    path = only(tmp_path, "a.png")
    Image.fromarray(rgba).save(path)
    read = load_painting(path)
    assert read[0, 0].tolist() == [200, 30, 10]
    assert np.allclose(read[0, 25], (227, 142, 132), atol=1)
    assert read[0, 40].tolist() == [255, 255, 255]
    grey = Image.fromarray(rgba[..., 0]).convert("LA")
    grey.putalpha(0)
    grey.save(path)
    assert load_painting(path)[0, 0].tolist() == [255, 255, 255]


def test_palettes_keep_their_colours(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = only(tmp_path, "a.png")
    palette = Image.fromarray(pixels).quantize(8)
    palette.save(path)
    assert np.array_equal(load_painting(path), np.asarray(palette.convert("RGB")))
    palette.save(path, transparency=0)
    hidden = np.asarray(palette) == 0
    assert (load_painting(path)[hidden] == 255).all()


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
    for name in ("a.png", "a.tif"):
        path = only(tmp_path, name)
        Image.fromarray(ramp).save(path)
        read = load_painting(path)
        assert np.array_equal(read[..., 0], ramp >> 8)
        assert np.array_equal(read[..., 0], read[..., 2])
        assert np.array_equal(shown(path), read)
        path.unlink()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_measurements_are_no_paintings(tmp_path: Path, mode: str) -> None:
    path = only(tmp_path, "a.tif")
    Image.fromarray(np.full(SIZE, 70000, np.int32 if mode == "I" else np.float32)).save(path)
    with pytest.raises(UserError, match="export it with 8 or 16 bits"):
        load_painting(path)


@pytest.mark.parametrize("profile", [False, True])
def test_cmyk_is_converted_for_the_browser(tmp_path: Path, pixels: NDArray[np.uint8], profile: bool) -> None:
    path = only(tmp_path, "a.jpg")
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile else None
    Image.fromarray(pixels).convert("CMYK").save(path, quality=95, icc_profile=icc)
    read = load_painting(path)  # a profile of the wrong kind is passed over
    assert np.abs(read.astype(int) - pixels).mean() < 12
    assert np.array_equal(shown(path), read)


def test_an_animation_is_its_first_picture(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = only(tmp_path, "a.gif")
    first = Image.fromarray(pixels).quantize(16)
    first.save(path, save_all=True, append_images=[Image.fromarray(255 - pixels).quantize(16)])
    sent = browser_bytes(path)
    assert sent.suffix == ".png"
    with Image.open(io.BytesIO(sent.content)) as image:
        assert getattr(image, "n_frames", 1) == 1
    assert np.array_equal(shown(path), load_painting(path))


def test_a_wrong_suffix_does_not_matter(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = only(tmp_path, "a.jpg")
    Image.fromarray(pixels).save(path, format="PNG")
    assert np.array_equal(load_painting(path), pixels)
    sent = browser_bytes(path)
    assert sent.suffix == ".png"
    assert sent.content[:4] == b"\x89PNG"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_thumbnails_are_mean_colours_by_place(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((640, 1280, 3), np.uint8)
    image[:, 640:] = (200, 100, 50)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn to the right: the dark half comes to lie on top
    path = only(tmp_path, f"a{suffix}")
    Image.fromarray(image).save(path, exif=exif)
    small = thumbnail(path)
    assert small.shape == (paintings.THUMBNAIL, paintings.THUMBNAIL, 3)
    assert small[: paintings.THUMBNAIL // 2 - 1].max() < 5
    assert np.allclose(small[-1, 3], (200, 100, 50), atol=3)
    found = scan(path.parent, Workspace(tmp_path))
    assert found.paintings[0].size == (1280, 640)
    assert np.array_equal(found.thumbnails["a"], small)
