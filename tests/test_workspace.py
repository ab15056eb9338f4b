"""The workspace's settings, classes and places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate.classes import DEFAULT_CLASSES, ClassTable, PaintingClass
from annotate.errors import UserError
from annotate.masks import Encoding, write_mask
from annotate.workspace import Settings, Workspace, safe_key


def test_settings_round_trip_keeps_the_users_comments(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.settings() == Settings()
    workspace.save_settings(seed=7)
    text = workspace.settings_file.read_text().replace("seed = 7", "seed = 7  # my lucky number")
    workspace.settings_file.write_text(text)
    workspace.save_settings(studio_project=3, studio_url="http://127.0.0.1:1")
    assert "# my lucky number" in workspace.settings_file.read_text()
    after = workspace.settings()
    assert (after.seed, after.studio_project, after.studio_url) == (7, 3, "http://127.0.0.1:1")
    assert after.classes.classes == DEFAULT_CLASSES


def test_the_users_own_classes_are_read(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.settings_file.write_text(
        '[[classes]]\nname = "Bäume & \\"co\\""\nid = 168\ncolor = "#00ff00"\norder = 1\n'
        '[[classes]]\nname = "boat"\nid = 8\ncolor = "#ff0000"\norder = 2\n'
    )
    classes = workspace.settings().classes
    assert classes.names == ['Bäume & "co"', "boat"]
    assert classes.to_index(np.array([[8, 168, 255]], np.uint8)).tolist() == [[1, 0, 255]]
    assert classes.to_raw(np.array([[1, 0, 255]], np.uint8)).tolist() == [[8, 168, 255]]
    assert classes.colours()[8].tolist() == [255, 0, 0]
    workspace.save_settings(seed=1)
    assert workspace.settings().classes == classes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\nseed = [\n= 2", "line 3"),
        ("fraction = 'much'", "could not convert"),
        ("[[classes]]\nname = 'sky'\n", "class 1 needs id"),
        ("[[classes]]\nname='a'\nid=200\ncolor='#000000'\norder=0\n", "not a COCO-Stuff id"),
        ("[[classes]]\nname='a'\nid=1\ncolor='red'\norder=0\n", "not like"),
        ("[[classes]]\nname=' '\nid=1\ncolor='#000000'\norder=0\n", "1 to 200 characters"),
        ("classes = ['sky']", "class 1 is 'sky'; write it as"),
        ("classes = 5", "classes is 5; write it as"),
        ("studio = 5", "studio is 5; write it as"),
        ("fraction = nan", "fraction is nan, not from 0 to 1"),
        ("fraction = 25", "fraction is 25.0, not from 0 to 1"),
        ("seed = -1", "seed is -1, below 0"),
        ("max_side = -5", "max_side is -5, below 0"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, text: str, line: str) -> None:
    workspace = Workspace(tmp_path)
    workspace.settings_file.write_text(text)
    with pytest.raises(UserError, match=line):
        workspace.settings()


def test_two_classes_may_not_share_an_id() -> None:
    with pytest.raises(UserError, match="share the id 5"):
        ClassTable((PaintingClass("a", 5, "#000000", 0), PaintingClass("b", 5, "#000001", 1)))


def test_mask_ids_outside_the_classes_are_named() -> None:
    with pytest.raises(UserError, match=r"\[3, 9\]"):
        ClassTable().to_index(np.array([[9, 3, 148, 255]], np.uint8))


@pytest.mark.parametrize("key", ["../../etc/x", "/etc/x", "a/../b", "", "a//b", "a\\b", "a\0b", "."])
def test_keys_that_leave_the_workspace_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match="outside the workspace"):
        safe_key(key)
    with pytest.raises(UserError, match="outside the workspace"):
        Workspace(tmp_path).mask("hand", key)


@pytest.mark.parametrize("key", ["a", "1998/Été #3 'blue'", "a.b", "..a", "dot."])
def test_mask_keys_are_found_again(tmp_path: Path, key: str) -> None:
    workspace = Workspace(tmp_path)
    write_mask(workspace.mask("hand", key), np.zeros((2, 3), np.uint8), Encoding.RAW)
    assert workspace.keys_with_mask("hand") == [key]


def test_reports_round_trip(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.report("push") is None
    workspace.save_report("push", {"added": 3})
    assert workspace.report("push") == {"added": 3}
