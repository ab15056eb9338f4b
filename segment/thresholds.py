"""The thresholds that cross-validation learnt, kept for the model that they speak for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.files import read_json, write_json
from annotate.workspace import Workspace
from segment.calibrate import LEVELS


def save_thresholds(workspace: Workspace, mark: str, levels: NDArray[np.int64], classes: ClassTable) -> None:
    """Keep the level (0 to 255) below which a pixel of each class is unsure.

    Args:
        mark: fingerprint of the model.
        levels: (K,).
    """
    found = dict(zip(classes.names, levels.tolist(), strict=True))
    write_json(_place(workspace), {"model": mark, "levels": found})


def learnt_thresholds(workspace: Workspace, mark: str, classes: ClassTable) -> NDArray[np.int64] | None:
    """The (K,) levels learnt for the model with this fingerprint; None where nobody cross-validated it.

    Raises:
        UserError: a damaged file.
    """
    path = _place(workspace)
    found = read_json(path) if path.exists() else None
    levels = found.get("levels") if isinstance(found, dict) and found.get("model") == mark else None
    if not isinstance(levels, dict) or list(levels) != classes.names:
        return None
    return np.array([min(max(int(one), 0), LEVELS - 1) for one in levels.values()], np.int64)


def _place(workspace: Workspace) -> Path:
    return workspace.model("deeplab") / "folds" / "thresholds.json"
