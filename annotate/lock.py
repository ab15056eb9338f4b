"""Locks that end with the process that holds them: a stale file cannot mislead."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from annotate.errors import UserError
from annotate.progress import is_first
from annotate.workspace import Workspace

_trainings: set[int] = set()  # open lock files


def _let_go() -> None:
    """Processes that load crops outlive a training that was killed by some seconds, in which it may be run again."""
    for lock in _trainings:
        os.close(lock)
    _trainings.clear()


os.register_at_fork(after_in_child=_let_go)


def take_lock(path: Path) -> int | None:
    """The open lock file, locked where the file system has locks; None where another process holds it.

    Raises:
        UserError: no file can be made there.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); mend the permissions or choose another --workspace"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    return handle


@contextlib.contextmanager
def alone(workspace: Workspace) -> Iterator[None]:
    """While a push or a review sends: two at once would each make a project, or each task twice.

    Raises:
        UserError: another one is at it.
    """
    private_folder(workspace.studio_folder)
    lock = take_lock(workspace.studio_folder / "send.lock")
    if lock is None:
        raise UserError(
            f"{workspace.root}: another push or review is sending to Label Studio; wait for its end, then run this again"
        )
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def one_training(folder: Path) -> Iterator[None]:
    """While a model is trained into `folder`: two at once would each go on from the other's state.

    Raises:
        UserError: another one is at it.
    """
    if not is_first():  # of processes that train together, the first one holds it
        yield
        return
    with contextlib.suppress(OSError):  # `take_lock` says why
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder.with_name(f".{folder.name}.lock"))
    if lock is None:
        raise UserError(f"{folder}: another training is at it; wait for its end, then run this again")
    _trainings.add(lock)
    try:
        yield
    finally:
        _trainings.remove(lock)
        os.close(lock)


def private_folder(folder: Path) -> None:
    """Make a folder that its user alone can enter.

    Raises:
        UserError: it cannot be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: no folder can be made there ({error.strerror}); choose another --workspace"
        ) from error
