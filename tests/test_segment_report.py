"""The report: one file with everything in it, right figures, and a layout that a phone shows whole."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from segment_toys import toy_workspace
from test_segment_predict import untrained

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.paintings import read_index
from annotate.workspace import Workspace
from segment.config import EvaluateConfig, LabelConfig
from segment.evaluate import evaluate
from segment.label import REPORT, pseudo_label
from segment.report import write_report


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = toy_workspace(tmp_path_factory.mktemp("report"), paintings=10)
    untrained(made)
    made.save_report(REPORT, asdict(pseudo_label(made, LabelConfig(threshold=0.2), "cpu")))
    found = evaluate(made, EvaluateConfig(truth=made.root / "truth"), "cpu")
    made.save_report("segment-evaluate", found.report())
    return made


def test_it_holds_everything(workspace: Workspace) -> None:
    found = workspace.report("segment-evaluate") or {}
    text = write_report(workspace).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing is fetched
    for one in found["classes"]:
        assert one["name"] in text
    matrix = np.array(found["confusion"])
    assert f">{100 * matrix[0, -1] / matrix[0].sum():.0f}</td>" in text  # of the first class, unlabelled
    worst = text.index("The least sure")
    keys = [key for key in found["ranking"] if key in text[worst:]]
    assert len(keys) == 7  # six of the least sure, and the surest
    places = [text.index(f"<figcaption>{key}<", worst) for key in found["ranking"][:6]]
    assert places == sorted(places)
    assert text.count("overlay</figcaption>") == 7
    assert len(text) < 2_000_000


def test_a_painting_that_cannot_be_read_is_left_out(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Workspace(tmp_path / "other")
    shutil.copytree(workspace.root, other.root)
    worst = (other.report("segment-evaluate") or {})["ranking"][0]
    read_index(other)[worst].file(other).unlink()
    text = write_report(other).read_text()
    assert text.count("overlay</figcaption>") == 6
    assert f"left out: {read_index(other)[worst].file(other)}: cannot be read" in capsys.readouterr().err


def test_figures_keep_the_names_of_their_classes(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    shutil.copytree(workspace.root, other.root)
    first, second, *rest = other.settings().classes.classes
    other.save_settings(classes=ClassTable((second, first, *rest)))
    text = write_report(other).read_text()
    assert text.index(f"<th>{first.name}</th>") < text.index(f"<th>{second.name}</th>")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_report(toy_workspace(tmp_path))


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1200])
def test_no_screen_is_too_narrow(workspace: Workspace, chromium: str, width: int, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    path = write_report(workspace)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(
            "[...document.images].every(one => one.naturalWidth > 0 || one.loading == 'lazy')"
        )
        page.screenshot(path=tmp_path / "report.png", full_page=True)
        browser.close()
    assert problems == []
    assert (tmp_path / "report.png").stat().st_size > 10_000
