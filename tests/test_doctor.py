"""`tool doctor` finds what is amiss and says how to mend it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from annotate.workspace import Workspace
from cli import main
from demo import doctor


def test_this_machine_is_examined(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--json", "-w", str(tmp_path / "not" / "yet")])
    value = json.loads(result.stdout)
    names = {one["name"]: one for one in value["findings"]}
    assert names["python"]["ok"]
    assert names["torch"]["ok"], names["torch"]
    assert {"gpu", "label studio", "disk", "memory", "cores", "cpu bfloat16", "chromium"} <= names.keys()
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_does_not_import_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = doctor.check_torch(Workspace(tmp_path))
    assert not found.ok
    assert "operator torchvision::nms does not exist" in found.found
    assert "from one index" in found.mend


def test_a_crashing_torch_does_not_crash_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = doctor.check_torch(Workspace(tmp_path))
    assert not found.ok
    assert sys.executable  # still here


def test_an_unreachable_server_is_needed_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_label_studio,))
    result = CliRunner().invoke(main, ["doctor", "-w", str(tmp_path)])
    assert result.exit_code == 1
    assert "FAIL  label studio" in result.stdout
    assert "127.0.0.1:9" in result.stdout
    assert "0" * 40 not in result.output
