"""What a folder of paintings may hold, those that no program can read, and the list that is made of it."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import Painter
from numpy.typing import NDArray
from PIL import Image

from annotate import paintings
from annotate.errors import UserError
from annotate.paintings import (
    Painting,
    load_painting,
    read_index,
    scan,
    write_index,
)
from annotate.workspace import Workspace


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
