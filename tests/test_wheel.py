"""The wheel carries all the code, and its command answers in a clean environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def uv(*words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--quiet", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_answers_in_a_clean_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: building leaves folders behind
    source.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "--", "*.py", "*.c", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    uv("build", "--wheel", "--out-dir", tmp_path / "dist", source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    stages = ("annotate/", "segment/", "generate/", "demo/", "cli.py")
    assert {name for name in tracked if name.startswith(stages)} <= packed
    assert not any(name.startswith(("tests/", "bench/")) for name in packed)
    uv("venv", "--python", sys.executable, tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    uv("pip", "install", "--python", python, "--no-deps", wheel)
    uv("pip", "install", "--python", python, "click")  # all that --help needs
    for command in ("tool", "impasto"):
        done = subprocess.run(
            [python.with_name(command), "--help"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert "annotate" in done.stdout
