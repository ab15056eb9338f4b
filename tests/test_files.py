"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from annotate.errors import UserError
from annotate.files import read_json, whole_file, write_json, write_whole


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_whole(path, "old")
    with pytest.raises(RuntimeError, match="midway"), whole_file(path) as temporary:
        temporary.write_text("new, but")
        raise RuntimeError("midway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_whole(path, "old")
    with pytest.raises(UserError, match="disk is full"), whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_whole(path, "old")
    code = (
        "import sys, time; from pathlib import Path; from annotate.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.kill()
    child.wait()
    assert path.read_text() == "old"


def test_modes_and_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "secret"
    write_whole(path, b"x", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    before = time.time() - 5
    write_whole(path, b"y", mode=0o600)
    assert path.read_bytes() == b"y"
    assert path.stat().st_mtime > before


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "é.json"
    write_json(path, {"clé": [1, None, "ü"]})
    assert read_json(path) == {"clé": [1, None, "ü"]}
    path.write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        read_json(path)
