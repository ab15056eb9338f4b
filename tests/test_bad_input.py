"""Bad input as a user brings it, through the real command: one clear line, the right exit code, nothing lost.

What the annotators do (unknown labels, skipped, annotated twice) is in `test_pull.py`, a server that goes away in
`test_push.py`, `test_pull.py` and `test_reliability.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import Painter
from PIL import Image
from segment_toys import SIZE, toy_workspace
from test_paintings import huge_png

from annotate.masks import Encoding, write_mask
from annotate.paintings import load_painting, read_index
from annotate.workspace import Workspace
from cli import main


def tool(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def one_line(done: Result, line: str) -> None:
    """Exit code 1, one error line that says this, and no traceback."""
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    errors = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert line in errors[0]
    assert done.stderr.splitlines()[-1] == errors[0]


@pytest.mark.server
def test_a_folder_of_every_trouble(remote: Workspace, tmp_path: Path, paint: Painter) -> None:
    """What can be mended on the way in is sent; what cannot is named and left out; hundreds are not stopped."""
    folder = tmp_path / "paintings"
    pixels = paint(folder / "plain.png", (40, 60))
    image = Image.fromarray(pixels)
    names = ["with space", "Été à Paris", "#3", 'it\'s "quoted"', "長" * 80]
    for name in names:
        image.save(folder / f"{name}.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "rgba.png")
    image.convert("P").save(folder / "palette.png")
    image.save(folder / "scan.tif")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    whole = (folder / "#3.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "huge.png").write_bytes(huge_png(20_000, 10_000))
    good = ["plain", *names, "sixteen", "cmyk", "rgba", "palette", "scan", "turned"]
    for attempt in range(2):
        command = ("annotate", "push", str(folder), "--strategy", "all", "-w", str(remote.root))
        done = tool(*command, *(["--json"] if attempt else []))
        one_line(done, "3 left out, the rest is done; mend them and run the command again")
        for line in (
            "truncated.jpg: not a readable image",
            "empty.png: empty file; copy it again from its source",
            "huge.png: 20000 x 10000 is 200 megapixels, more than 100; scale it to 14142 x 7071 or less",
        ):
            assert sum(line in one for one in done.stderr.splitlines()) == 1
        if attempt:
            shown = json.loads(done.stdout)
            assert (shown["added"], shown["there"], len(shown["problems"])) == (0, len(good), 3)
    index = read_index(remote)
    assert set(index) == set(good)
    assert index["turned"].size == (60, 40)
    assert all(load_painting(one.file(remote)).shape == (*one.size, 3) for one in index.values())


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ((), "no images in it"),
        (("notes.txt",), "no images in it"),
        (("a.png", "a.jpg"), "share the key 'a'; rename one of them"),
    ],
)
def test_a_folder_that_cannot_be_pushed(
    tmp_path: Path, paint: Painter, names: tuple[str, ...], line: str
) -> None:
    (tmp_path / "paintings").mkdir()
    for name in names:
        path = tmp_path / "paintings" / name
        path.write_text("x") if name.endswith(".txt") else paint(path)
    done = tool("annotate", "push", str(tmp_path / "paintings"), "-w", str(tmp_path / "w"))
    one_line(done, line)
    assert not (tmp_path / "w").exists(), "nothing was begun"


def test_no_such_folder(tmp_path: Path) -> None:
    done = tool("annotate", "push", str(tmp_path / "nowhere"), "-w", str(tmp_path / "w"))
    one_line(done, "no such folder")
    assert not (tmp_path / "w").exists(), "nothing was begun"


@pytest.mark.server
@pytest.mark.parametrize("command", ["push", "pull", "status"])
@pytest.mark.parametrize(
    ("url", "key", "line"),
    [
        ("", "0" * 40, "Label Studio refuses the key"),
        ("", "", "needs a key; copy it from Label Studio's Account & Settings page"),
        ("http://127.0.0.1:1", "0" * 40, "Label Studio does not answer"),
        ("localhost:8080", "0" * 40, "write it like http://localhost:8080"),
    ],
)
def test_a_wrong_key_or_address(
    remote: Workspace,
    tmp_path: Path,
    paint: Painter,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    url: str,
    key: str,
    line: str,
) -> None:
    monkeypatch.setattr("annotate.connection.FIRST_WAIT", 0.01)
    paint(tmp_path / "paintings" / "a.png")
    folder = [str(tmp_path / "paintings")]
    assert tool("annotate", "push", *folder, "-w", str(remote.root)).exit_code == 0
    before = {path: path.read_bytes() for path in remote.root.glob("*") if path.is_file()}
    if url:
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    one_line(tool("annotate", command, *(folder if command == "push" else []), "-w", str(remote.root)), line)
    assert {path: path.read_bytes() for path in remote.root.glob("*") if path.is_file()} == before


def test_training_without_enough_to_learn_from(tmp_path: Path) -> None:
    none, one_class = toy_workspace(tmp_path / "none", hand=0), toy_workspace(tmp_path / "one", hand=1)
    one_line(tool("segment", "train", "--init", "none", "-w", str(none.root)), "no hand masks")
    write_mask(one_class.mask("hand", "set/p0"), np.full(SIZE, 156, np.uint8), Encoding.RAW)
    done = tool("segment", "train", "--init", "none", "-w", str(one_class.root))
    one_line(done, "every labelled pixel is 'sky'")
    assert not one_class.model("deeplab").exists()
