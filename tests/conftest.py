"""Shared by all tests: one real Label Studio for the whole run, a workspace on it, and paintings to push."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from annotate import server
from annotate.workspace import Workspace

# with all threads in each, processes side by side wait for one another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

Painter = Callable[..., NDArray[np.uint8]]


def absent(what: str) -> None:
    """Skip where something is not installed; in CI, where it must be, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI allows no skip for it")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace whose own Label Studio runs; the only one of the whole test run."""
    if importlib.util.find_spec("label_studio") is None:
        absent("label-studio")
    workspace = Workspace(tmp_path_factory.mktemp("studio") / "embedded")
    try:
        server.start(workspace)
        yield workspace
    finally:
        server.stop(workspace)


@pytest.fixture
def remote(embedded: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace that uses the running server by address and key, as any server is used."""
    running = server.running(embedded)
    assert running is not None
    monkeypatch.setenv("LABEL_STUDIO_URL", running.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.login(embedded).key)
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium."""
    found = shutil.which("chromium")
    if found is None:
        absent("chromium")
    assert found is not None
    return found


@pytest.fixture
def paint() -> Painter:
    """`paint(path, size, seed)` writes a small painting of soft patches, and returns its pixels."""

    def paint(path: Path, size: tuple[int, int] = (50, 70), seed: int = 0) -> NDArray[np.uint8]:
        path.parent.mkdir(parents=True, exist_ok=True)
        patches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
        image = Image.fromarray(patches).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        image.save(path)
        return np.asarray(image)

    return paint
