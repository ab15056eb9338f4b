"""The report is one file that needs nothing else, escapes everything, and leaves out what is not there."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from golden_models import mask_codes, painting_codes, transformer
from PIL import Image

from annotate.agreement import compare, to_text
from annotate.errors import UserError
from annotate.masks import Encoding, read_mask, shift, write_mask
from annotate.page import curve, duration, page
from annotate.paintings import Painting, write_index
from annotate.pull import COMPARED
from annotate.workspace import Workspace
from demo.figures import STEPS, readable
from demo.flow import STAND_IN
from demo.painter import paint
from demo.report import build_report
from generate.checkpoint import save_model
from generate.compose import MADE_OF
from generate.sample import sample
from generate.sample_config import SampleConfig

NASTY = "a <b>&\"'c"  # a key that would break a page that does not escape
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, addresses and text; fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def start(root: Path) -> Workspace:
    """A workspace of three painted scenes, one with a hand mask."""
    workspace = Workspace(root)
    paintings = []
    for number, key in enumerate((NASTY, "sub/two", "three")):
        scene = paint(number, (96, 128))
        path = root / "paintings" / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(scene.painting).save(path)
        split = "hand" if number == 0 else "rest"
        paintings.append(Painting(key, str(path.relative_to(root)), (96, 128), "0" * 64, split))
        if number == 0:
            write_mask(workspace.mask("hand", key), scene.ids, Encoding.RAW)
    write_index(workspace, paintings)
    return workspace


def fill(workspace: Workspace) -> None:
    """The rest of the flow's files, as its steps write them."""
    for number, key in enumerate((NASTY, "sub/two", "three")):
        ids = paint(number, (96, 128)).ids
        write_mask(workspace.mask("shifted", key), shift(ids), Encoding.SHIFTED)
        if number:
            write_mask(workspace.mask("pseudo", key), ids, Encoding.RAW)
            sure = np.full((96, 128), 200, np.uint8)
            Image.fromarray(sure).save(made(workspace.mask("confidence", key)))
    save_model(workspace.model("painting-codes"), painting_codes(), {})
    save_model(workspace.model("mask-codes"), mask_codes(), {})
    save_model(workspace.model("transformer"), transformer(), {})
    mixed = workspace.composition("mixed")
    write_mask(mixed, paint(9, (96, 128)).ids, Encoding.RAW, {MADE_OF: "the left of <one>"})
    for mask in ("sub/two", str(mixed)):
        sample(workspace, SampleConfig(mask=mask, count=2), "cpu")
    iou = {"iou": 0.5, "precision": None, "recall": 1.0, "pixels": 3}
    workspace.save_report(
        "segment-evaluate",
        {
            "method": "truth",
            "paintings": 2,
            "seconds": 1.5,
            "miou": 0.512,
            "classes": [{"name": "<i>", **iou}],
        },
    )
    history = [{"step": n, "loss": 1 / n + (n > 20), "l1": 1 / n} for n in range(1, 30)]
    workspace.save_report("generate-train-painting", {"steps": 29, "seconds": 65.0, "history": history})
    Image.fromarray(paint(1, (96, 128)).painting).save(workspace.reports / "generate-train-painting.png")
    workspace.save_report("demo", {"note": STAND_IN, "steps": {"segment-train": {"seconds": 70.2}}})


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    workspace = start(tmp_path_factory.mktemp("report") / "work")
    fill(workspace)
    return read(build_report(workspace))


def test_the_page_needs_no_network_and_no_script(full: Reader) -> None:
    assert full.addresses
    assert all(one.startswith("data:image/") for one in full.addresses)
    assert not {"script", "link", "iframe", "object"} & set(full.tags)
    for one in full.addresses:
        with Image.open(io.BytesIO(base64.b64decode(one.split(",", 1)[1]))) as image:
            image.load()


def test_every_part_is_there(full: Reader) -> None:
    text = "\n".join(full.texts).replace("\N{NO-BREAK SPACE}", " ")
    for heading in ("At a glance", "New paintings", "Every step", "How good the labels are"):
        assert heading in full.texts
    for heading in ("Annotated paintings", "Labelled by the model", "How training went"):
        assert heading in full.texts
    assert STAND_IN in text
    assert "51.2 %" in text  # mIoU
    assert "1 min 05 s" in text  # by the step itself
    assert "1 min 10 s" in text  # by the demo's clock
    assert "polyline" in full.tags
    assert "L1 over the steps, from 1 to 0.0345" in text  # not the loss, which another part joined


def test_samples_stand_beside_their_mask_and_its_painting(full: Reader) -> None:
    assert full.texts.count("the painting that the mask came from") == 1  # the composition came from none
    assert "asked for: the mask of sub/two" in full.texts
    assert "asked for: the left of <one>" in full.texts
    assert sum(one.startswith("painted: seed 0, number") for one in full.texts) == 4


def test_names_are_escaped(full: Reader) -> None:
    assert NASTY in full.texts
    assert "<i>" in full.texts
    assert {"i", "b"} >= set(full.tags) & {"i", "b", "c"}


def test_a_workspace_with_parts_missing(tmp_path: Path) -> None:
    workspace = start(tmp_path / "work")
    reader = read(build_report(workspace))
    assert "Annotated paintings" in reader.texts
    for heading in ("New paintings", "Labelled by the model", "How good the labels are", "How training went"):
        assert heading not in reader.texts


def test_annotators_who_share_a_painting_are_compared(tmp_path: Path) -> None:
    workspace = start(tmp_path / "work")
    other = read_mask(workspace.mask("hand", NASTY), Encoding.RAW)
    assert "How far the annotators agree" not in read(build_report(workspace)).texts
    counts = compare([other, np.full_like(other, 156)])
    write_mask(workspace.mask("hand", NASTY), other, Encoding.RAW, {COMPARED: to_text(counts)})
    texts = read(build_report(workspace)).texts
    assert "How far the annotators agree" in texts
    sky = texts[texts.index("How far the annotators agree") :]
    assert f"{(other == 156).mean():.3f}" in sky[sky.index("sky") :][:3]


def test_a_mask_that_changed_after_the_sample_is_not_shown_as_its_own(tmp_path: Path) -> None:
    workspace = start(tmp_path / "work")
    fill(workspace)
    write_mask(workspace.mask("shifted", "sub/two"), np.ones((96, 128), np.uint8), Encoding.SHIFTED)
    reader = read(build_report(workspace))
    assert "asked for: the mask of sub/two" not in reader.texts
    assert sum(one.startswith("painted: seed 0, number") for one in reader.texts) == 4


def test_foreign_files_in_samples_are_left_out(tmp_path: Path) -> None:
    workspace = start(tmp_path / "work")
    workspace.samples.mkdir()
    (workspace.samples / "notes.png").write_bytes(b"no image")
    assert "New paintings" not in read(build_report(workspace)).texts


def test_a_damaged_painting_is_one_line(tmp_path: Path) -> None:
    workspace = start(tmp_path / "work")
    (workspace.root / "paintings" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png"):
        build_report(workspace)


def test_nothing_pushed_yet_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tool annotate push"):
        build_report(Workspace(tmp_path))


def test_figures_are_rounded_and_named() -> None:
    figures = {
        "miou": 0.51234,
        "seconds": 3.0,
        "left_out": 0,
        "loss": 0.123456,
        "masks": 12345,
        "url": "http",
    }
    assert readable(figures) == [("mIoU", "51.2 %"), ("loss", "0.123"), ("masks", "12,345")]
    assert readable({"left_out": 2, "history": [1], "losses": ["l1"]}) == [("left out", "2")]
    assert readable({"path": "/home/somebody/x", "how": "spread", "used": 1234.5}) == [
        ("how", "spread"),
        ("codebook rows used", "1,234"),
    ]
    assert len(STEPS) == 12


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 00 s"), (2168, "36 min"), (3725, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_curve_of_nothing_is_left_out() -> None:
    assert curve("loss", [(1, 2.0)]) == ""
    assert curve("loss", [(1, float("nan")), (2, 1.0)]) == ""
    assert "from 3 to 1" in curve("loss <x>", [(1, 3.0), (2, 1.0)])
    assert "<x>" not in curve("loss <x>", [(1, 3.0), (2, 1.0)])
    assert "<i>" not in page("<i>", "<i>", [])
