"""The folder that taming-transformers' own data classes read as it is.

    taming/images/KEY.jpg            the painting; .png where it is no JPEG
    taming/segmentations/KEY.png     its shifted mask, mode L
    taming/train.txt, val.txt        one painting a line, relative to images: `data_csv` of SegmentationBase
    taming/train-images.txt, ...     the same as absolute paths: what CustomTrain and CustomTest list
    taming/data.yaml                 both as `data:` sections for a config

SegmentationBase finds a mask by replacing `.jpg` by `.png` wherever that stands in the line, so that is where
each mask lies. Nothing is shifted again: the masks are shifted already.
Source: taming-transformers, taming/data/sflckr.py and taming/data/custom.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from annotate.files import whole_file, write_whole
from annotate.paintings import Painting, browser_bytes, load_painting
from annotate.progress import progress
from annotate.workspace import Workspace

FOLDER = "taming"


def write_layout(
    workspace: Workspace, paintings: Sequence[Painting], held_out: set[str], n_labels: int
) -> Path:
    """Write the layout for paintings that have a shifted mask; what is there already is not written again.

    Files are hard links where the disk allows it, so it takes no room; paintings that are neither JPEG nor PNG,
    or that are turned by EXIF, are converted.

    Args:
        held_out: keys for val.txt.
        n_labels: channels of the one-hot masks.

    Returns:
        The folder.

    Raises:
        UserError: a painting cannot be read.
    """
    root = workspace.root / FOLDER
    lines: dict[str, list[str]] = {"train": [], "val": []}
    with progress("Writing the layout of taming-transformers", len(paintings)) as advance:
        for painting in paintings:
            line = _place_painting(workspace, painting, root / "images")
            mask = root / "segmentations" / line.replace(".jpg", ".png")
            _link(workspace.mask("shifted", painting.key), mask)
            lines["val" if painting.key in held_out else "train"].append(line)
            advance()
    for name, found in lines.items():
        write_whole(root / f"{name}.txt", "".join(f"{line}\n" for line in found))
        paths = [(root / "images" / line).resolve().as_posix() for line in found]
        write_whole(root / f"{name}-images.txt", "".join(f"{path}\n" for path in paths))
    write_whole(root / "data.yaml", _yaml(root.resolve(), n_labels))
    return root


def _place_painting(workspace: Workspace, painting: Painting, folder: Path) -> str:
    """Put a painting in its place; returns its line."""
    source = painting.file(workspace)
    for suffix in (".jpg", ".png"):
        there = folder / f"{painting.key}{suffix}"
        if there.exists() and source.exists() and there.samefile(source):
            return f"{painting.key}{suffix}"
    shown = browser_bytes(source)
    suffix = ".jpg" if shown.suffix in (".jpg", ".jpeg") else ".png"
    target = folder / f"{painting.key}{suffix}"
    if shown.suffix in (".jpg", ".jpeg", ".png") and shown.suffix == source.suffix.lower():
        _link(source, target)
    else:
        with whole_file(target) as temporary:
            Image.fromarray(load_painting(source)).save(temporary, format="PNG", compress_level=3)
    return f"{painting.key}{suffix}"


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`; a copy where links are not possible."""
    if target.exists() and target.samefile(source):
        return
    # a link shares its permissions with the painting: they stay as they are
    with whole_file(target, stat.S_IMODE(source.stat().st_mode)) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, temporary)


def _yaml(root: Path, n_labels: int) -> str:
    """`data:` sections for a taming-transformers config."""
    import yaml

    def split(name: str) -> Mapping[str, Any]:
        return {
            "target": "taming.data.sflckr.SegmentationBase",
            "params": {
                "data_csv": str(root / f"{name}.txt"),
                "data_root": str(root / "images"),
                "segmentation_root": str(root / "segmentations"),
                "size": 256,
                "random_crop": name == "train",
            },
        }

    params = {"batch_size": 4, "num_workers": 4, "train": split("train"), "validation": split("val")}
    note = (
        f"# The masks are shifted already: set no shift_segmentation. They need n_labels {n_labels}.\n"
        "# For the painting codes: taming.data.custom.CustomTrain with training_images_list_file train-images.txt,\n"
        "# and taming.data.custom.CustomTest with test_images_list_file val-images.txt.\n"
    )
    return note + yaml.safe_dump(
        {"data": {"target": "main.DataModuleFromConfig", "params": params}}, sort_keys=False
    )
