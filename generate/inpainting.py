"""Inpainting: a part of an existing painting is painted anew, the rest is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.masks import unshift
from annotate.paintings import load_painting, read_index
from annotate.workspace import Workspace
from generate.data import to_image
from generate.painting import Given
from generate.recipe import PACKED, digest, pack, recipe_inside, unpack
from generate.regions import read_regions
from generate.tiles import encode_tiled
from generate.vqgan import VQGAN

Ids = NDArray[np.uint8]
Pixels = NDArray[np.uint8]
FEATHER = 8  # pixels beside the repainted region in which the new painting gives way to the old one


@dataclass(frozen=True)
class Repaint:
    """An existing painting, and which part of it is painted anew."""

    path: Path
    painting: Pixels  # (H, W, 3)
    region: NDArray[np.bool_]  # (H, W)

    def recipe(self) -> dict[str, Any]:
        """What a recipe says of it: the painting by its place and digest, the region as it is."""
        region = self.region.astype(np.uint8) * 255
        content = hashlib.sha256(self.painting.tobytes()).hexdigest()[:16]
        return {
            "path": str(self.path.resolve()),
            "painting_sha256": content,
            "region_sha256": digest(region),
            PACKED: pack(region),
        }

    def given(self, codes: VQGAN, size: tuple[int, int], device: torch.device) -> Given:
        """The painting's own tokens, of the cells in which nothing is painted anew.

        Args:
            codes: the painting's.
            size: (h, w) of the canvas in tokens, which may be larger than the painting.
        """
        factor = codes.config.downsampling
        height, width = self.region.shape
        below, right = size[0] * factor - height, size[1] * factor - width
        padded = np.pad(self.painting, ((0, below), (0, right), (0, 0)), mode="edge")
        image = to_image(torch.from_numpy(padded.transpose(2, 0, 1).copy()))[None].to(device)
        tokens = encode_tiled(codes, image)[0]  # (h, w)
        cells = np.pad(self.region, ((0, below), (0, right)), mode="edge")
        anew = cells.reshape(size[0], factor, size[1], factor).any(axis=(1, 3))
        return Given(tokens, torch.from_numpy(~anew).to(device))

    def blend(self, painted: Pixels) -> Pixels:
        """The new painting (H, W, 3) in the region, the old one's own pixels elsewhere, grown together between."""
        new = torch.from_numpy(self.region)[None, None].float()
        # widened by half the feather and blurred by the other half: 1 in the region, 0 from FEATHER pixels on
        new = F.max_pool2d(new, FEATHER + 1, 1, FEATHER // 2)
        new = F.avg_pool2d(new, FEATHER + 1, 1, FEATHER // 2, count_include_pad=False)
        share = new[0, 0, :, :, None].numpy()
        mixed = painted * share + self.painting * (1 - share)
        return np.asarray(mixed.round().clip(0, 255), np.uint8)


def read_repaint(
    workspace: Workspace, name: str, regions: Sequence[str], ids: Ids, own: Ids | None, classes: ClassTable
) -> Repaint:
    """Find the painting, and the region of it.

    Args:
        name: a file, or the key of a painting of the workspace.
        regions: in a user's words; none: where the mask asked for differs from the painting's own.
        ids: (H, W) shifted ids asked for.
        own: (H, W) shifted ids of the painting, where they are known.

    Raises:
        UserError: no such painting, one of another size than the mask, or no region.
    """
    path = painting_file(workspace, name)
    painting = load_painting(path)
    if painting.shape[:2] != ids.shape:
        raise UserError(
            f"{path}: {painting.shape[0]} x {painting.shape[1]} (H x W), but the mask has "
            f"{ids.shape[0]} x {ids.shape[1]}; both must lie on one another"
        )
    if regions:  # what was of a class, and what is to be
        before = unshift(own) if own is not None and own.shape == ids.shape else None
        return Repaint(path, painting, read_regions(regions, unshift(ids), classes, before))
    if own is None or own.shape != ids.shape or (own == ids).all():
        raise UserError(
            "--from: nothing to repaint; add --repaint with a class, a box such as 0,0,50%,100%, or a PNG, "
            "or a --mask that differs from the painting's own"
        )
    return Repaint(path, painting, own != ids)


def painting_file(workspace: Workspace, name: str) -> Path:
    """The file of a painting: one given, or one of the workspace by its key."""
    if Path(name).is_file():
        return Path(name)
    index = read_index(workspace) if workspace.index_file.exists() else {}
    if name not in index:
        raise UserError(f"{name}: neither a file nor the key of a painting; give --from a painting")
    return index[name].file(workspace)


def own_mask(workspace: Workspace, name: str) -> tuple[str, Ids] | None:
    """The mask that a painting was painted from, or was given in the workspace: (its name, (H, W) shifted ids)."""
    from generate.compose import read_composition

    path = painting_file(workspace, name)
    index = read_index(workspace) if workspace.index_file.exists() else {}
    for key, one in index.items():
        file = one.file(workspace)
        if file.name == path.name and file.exists() and file.samefile(path):
            return read_composition(workspace, key) if key in workspace.keys_with_mask("shifted") else None
    try:
        recipe = recipe_inside(path) or {}
        return str(recipe["mask_name"]), unpack(recipe[PACKED])
    except (UserError, ValueError, TypeError, KeyError):
        return None  # no painting of ours, or not any more


def repaint_of_recipe(workspace: Workspace, about: dict[str, Any]) -> Repaint:
    """The painting and region that a recipe names; the painting may have moved with its workspace.

    Raises:
        UserError: the painting is gone or was changed.
        ValueError: the region is another than the recipe says, or does not fit the painting.
    """
    named = Path(about["path"])
    index = read_index(workspace) if workspace.index_file.exists() else {}
    kept = [one.file(workspace) for one in index.values()]
    places = [named, workspace.samples / named.name, *(one for one in kept if one.name == named.name)]
    for path in places:
        if not path.is_file():
            continue
        found = Repaint(path, load_painting(path), unpack(about[PACKED]) > 0)
        recipe = found.recipe()
        if recipe["painting_sha256"] != about["painting_sha256"]:
            continue
        if recipe["region_sha256"] != about["region_sha256"] or not found.region.any():
            raise ValueError("its region is another than it says")
        if found.region.shape != found.painting.shape[:2]:
            raise ValueError("its region has another size than the painting")
        return found
    state = "is not the painting any more" if named.is_file() else "is not there, the painting"
    raise UserError(f"{named}: {state} that the recipe repaints; put it back")
