"""Paintings of every kind that a folder may hold, and those that no program can read."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
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
    Painting,
    browser_bytes,
    load_painting,
    read_index,
    scan,
    thumbnail,
    write_index,
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


def huge_png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_unreadable_files_are_left_out_and_said(tmp_path: Path, paint: Painter) -> None:
    folder = tmp_path / "folder"
    paint(folder / "good.png")
    paint(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    (folder / "huge.png").write_bytes(huge_png(20_000, 10_000))
    (folder / "vast.png").write_bytes(huge_png(2_000_000_000, 2_000_000_000))
    (folder / "line\nbreak.png").write_bytes((folder / "good.png").read_bytes())
    (folder / "back\\slash.png").write_bytes((folder / "good.png").read_bytes())
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.png").touch()
    found = scan(folder, Workspace(tmp_path / "w"))
    assert [one.key for one in found.paintings] == ["good", "whole"]
    lines = "\n".join(found.problems)
    assert len(found.problems) == 7
    assert all("\n" not in line for line in found.problems)
    assert "empty.png: empty file" in lines
    assert "truncated.jpg: not a readable image" in lines
    assert "text.png: not a readable image (of no kind that is known)" in lines
    assert (
        "huge.png: 20000 x 10000 is 200 megapixels, more than 100; scale it to 14142 x 7071 or less" in lines
    )
    assert "vast.png" in lines
    assert "unprintable characters; rename it" in lines
    assert "back\\slash" in lines


def test_a_name_that_is_not_utf8_is_left_out(tmp_path: Path, paint: Painter) -> None:
    folder = tmp_path / "folder"
    paint(folder / "good.png")
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = scan(folder, Workspace(tmp_path / "w"))
    assert [one.key for one in found.paintings] == ["good"]
    assert "rename it" in found.problems[0]
    found.problems[0].encode()


def test_a_folder_whose_path_is_not_utf8_is_one_line(tmp_path: Path, paint: Painter) -> None:
    """Before anything is written: the list could not name its files."""
    folder = tmp_path / os.fsdecode(b"caf\xe9") / "sub"
    try:
        paint(folder / "good.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UserError, match="unprintable characters in its path; rename it") as caught:
        scan(folder, Workspace(tmp_path / "w"))
    caught.value.message.encode()


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of 100 megapixels at once took 14 GB."""
    for number in range(6):
        paint(tmp_path / "folder" / f"{number}.png")
    monkeypatch.setattr(paintings, "LARGE", 1000)
    original = paintings._upright_rgb
    inside, most = 0, 0

    def counted(image: Image.Image, path: Path) -> Image.Image:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return original(image, path)

    monkeypatch.setattr(paintings, "_upright_rgb", counted)
    assert len(scan(tmp_path / "folder", Workspace(tmp_path / "w")).paintings) == 6
    assert most == 1


def test_a_pipe_is_left_out_and_a_link_to_a_folder_is_told(
    tmp_path: Path, paint: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    paint(folder / "good.png")
    paint(tmp_path / "elsewhere" / "other.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    found = scan(folder, Workspace(tmp_path / "w"))
    assert [one.key for one in found.paintings] == ["good"]
    assert found.problems == (f"{folder.resolve()}/pipe.png: neither a file nor a folder; take it away",)
    assert "more': a link to a folder, which is not followed" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_left_out(
    tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    paint(folder / "good.png")
    paint(folder / "locked.png")
    original = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = scan(folder, Workspace(tmp_path / "w"))
    assert found.problems == (f"{folder.resolve()}/locked.png: cannot be read (Permission denied)",)


@pytest.mark.parametrize("names", [(), ("notes.txt",), (".hidden.png",)])
def test_a_folder_without_images_is_an_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="no images in it"):
        scan(tmp_path, Workspace(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        scan(tmp_path / "nowhere", Workspace(tmp_path))


def test_two_files_with_one_key_are_both_named(tmp_path: Path, paint: Painter) -> None:
    paint(tmp_path / "sub" / "a.png")
    paint(tmp_path / "sub" / "a.jpg")
    with pytest.raises(UserError, match=r"sub/a\.jpg and .*sub/a\.png share the key 'sub/a'; rename one"):
        scan(tmp_path, Workspace(tmp_path / "w"))


def test_strange_names_make_keys(tmp_path: Path, paint: Painter) -> None:
    names = ["with space", "Été", "#3", 'it\'s "quoted"', "a.b.c", "1998/sub/x", "100%", "<b>&amp;"]
    # joiners of an emoji and of Persian, a Mac's narrow space before PM, one that does not break
    names += ["\U0001f469\u200d\U0001f3a8", "\u0645\u06cc\u200c\u062e", "10.30\u202fPM", "a\u00a0b"]
    for name in names:
        paint(tmp_path / "p" / f"{name}.png")
    workspace = Workspace(tmp_path / "w")
    found = scan(tmp_path / "p", workspace)
    assert sorted(one.key for one in found.paintings) == sorted(names)
    write_index(workspace, found.paintings)
    assert set(read_index(workspace)) == set(names)
    assert all(
        load_painting(one.file(workspace)).shape == (50, 70, 3) for one in read_index(workspace).values()
    )


def test_a_workspace_can_hold_the_paintings_and_be_moved(tmp_path: Path, paint: Painter) -> None:
    workspace = Workspace(tmp_path / "w")
    paint(workspace.root / "a.png")
    paint(workspace.masks("hand") / "a.png")
    paint(workspace.samples / "s.png")
    found = scan(workspace.root, workspace)
    assert [(one.key, one.path) for one in found.paintings] == [("a", "a.png")]
    write_index(workspace, found.paintings)
    workspace.root.rename(tmp_path / "moved")
    moved = Workspace(tmp_path / "moved")
    assert load_painting(read_index(moved)["a"].file(moved)).shape == (50, 70, 3)


def test_what_is_known_is_not_decoded_again(
    tmp_path: Path, paint: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        paint(tmp_path / "p" / f"{seed}.png", seed=seed)
    workspace = Workspace(tmp_path / "w")
    first = scan(tmp_path / "p", workspace)
    assert set(first.thumbnails) == {"0", "1", "2"}
    known = {one.key: Painting(one.key, one.path, one.size, one.sha256, "hand") for one in first.paintings}
    paint(tmp_path / "p" / "1.png", (20, 90), seed=9)
    decoded = []
    original = paintings._inspect

    def counted(content: bytes, path: Path) -> tuple[tuple[int, int], NDArray[np.uint8]]:
        decoded.append(path.name)
        return original(content, path)

    monkeypatch.setattr(paintings, "_inspect", counted)
    second = scan(tmp_path / "p", workspace, known)
    assert decoded == ["1.png"]
    assert [one.size for one in second.paintings] == [(50, 70), (20, 90), (50, 70)]
    assert {one.split for one in second.paintings} == {"hand"}


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


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"key": "a"}',
        '{"key": "../a", "path": "a", "size": [1, 2], "sha256": "", "split": "hand"}',
        "[]",
    ],
)
def test_a_damaged_list_names_its_line(tmp_path: Path, line: str) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(UserError, match="push PAINTINGS` first"):
        read_index(workspace)
    workspace.index_file.write_text(
        '{"key": "a", "path": "a", "size": [1, 2], "sha256": "", "split": "hand"}\n' + line + "\n"
    )
    with pytest.raises(UserError, match=r"paintings\.jsonl:2: damaged|outside the workspace"):
        read_index(workspace)
