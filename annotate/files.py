"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotate.errors import UserError


@contextlib.contextmanager
def whole_file(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes `path`'s place, on any error it vanishes.

    Args:
        path: where the file shall lie; missing parent folders are made.
        mode: its permission bits; a secret takes 0o600, and never exists with wider ones.

    Raises:
        UserError: the disk is full or the folder cannot be written; an older file at `path` is untouched.
    """
    temporary: Path | None = None
    try:
        temporary = _beside(path, mode)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # a library may have put a file of its own there
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{path}: the disk is full; free some space and run the command again (nothing was changed)"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); mend the permissions or choose another folder"
            ) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _beside(path: Path, mode: int) -> Path:
    """An empty file in the folder of `path`, which is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".part", dir=path.parent)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{path.parent}: no folder can be made there ({error.strerror}); choose another"
        ) from error
    os.fchmod(handle, mode)
    os.close(handle)
    return Path(name)


def write_whole(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write `content` to `path`, whole or not at all; text is UTF-8."""
    with whole_file(path, mode) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, which are read a piece at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        UserError: the file is damaged; the line names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); delete it and run the step that wrote it again"
        ) from error
