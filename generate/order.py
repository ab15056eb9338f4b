"""What one call of the sampler is asked for: read from its options, or from a painting's recipe."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from annotate.errors import UserError
from annotate.options import option_of
from annotate.workspace import Workspace
from generate.canvas import resize_canvas
from generate.compose import parse_size, read_composition
from generate.inpainting import Repaint, own_mask, read_repaint, repaint_of_recipe
from generate.recipe import PACKED, SETTINGS, digest, pack, read_recipe, unpack
from generate.sample_config import SampleConfig

Ids = NDArray[np.uint8]
LONGEST_NAME = 180  # bytes of a file's name that are the mask's; systems take 255
MOST_TOGETHER = 8  # paintings that share every step; more would take memory and save little time


@dataclass(frozen=True)
class Order:
    """Paintings that shall be made."""

    config: SampleConfig
    name: str  # of the mask
    ids: Ids  # (H, W) shifted
    numbers: tuple[int, ...]  # of the paintings, one each; they tell their noise apart
    repaint: Repaint | None = None
    models: dict[str, str] | None = None  # digests of the models that a recipe was painted with
    together: tuple[int, ...] = ()  # numbers that a recipe's painting shared its steps with, itself included

    @property
    def stem(self) -> str:
        name = Path(self.name).name.encode()[:LONGEST_NAME].decode(errors="ignore")
        return f"{name}-seed{self.config.seed}"

    def recipe(self, models: dict[str, str], number: int) -> dict[str, Any]:
        """All that decides the painting, and no more: the same recipe gives the same painting again."""
        return {
            **{setting: getattr(self.config, setting) for setting in SETTINGS},
            "number": number,
            "mask_name": Path(self.name).name,
            "mask_sha256": digest(self.ids),
            "canvas": list(self.ids.shape),
            "models": models,
            **({"from": self.repaint.recipe()} if self.repaint else {}),
            PACKED: pack(self.ids),
        }


def read_order(workspace: Workspace, config: SampleConfig) -> Order:
    """The order that the options describe.

    Raises:
        UserError: no such mask, painting, region or recipe, or a painting and a mask of two sizes.
    """
    if config.recipe is not None:
        _check_alone(config)
        return _order_of_recipe(workspace, config.recipe, config)
    own = own_mask(workspace, config.from_) if config.from_ else None
    if config.mask:
        name, ids = read_composition(workspace, config.mask, config.encoding)
    elif own is not None:
        name, ids = own
    else:
        raise UserError(f"{config.from_}: its mask is not known; give --mask")
    if config.size is not None:
        ids = resize_canvas(ids, parse_size(config.size))
    numbers = tuple(range(config.count))
    if not config.from_:
        return Order(config, name, ids, numbers)
    classes = workspace.settings().classes
    repaint = read_repaint(workspace, config.from_, config.repaint, ids, own[1] if own else None, classes)
    return Order(config, name, ids, numbers, repaint)


def _order_of_recipe(workspace: Workspace, path: Path, config: SampleConfig) -> Order:
    """The painting of a recipe again; of the options those count that do not decide what is painted."""
    recipe = read_recipe(path)
    try:
        ids = unpack(recipe[PACKED])
        if digest(ids) != recipe["mask_sha256"]:
            raise ValueError("its mask is another than it says")
        _check_settings(recipe)
        settled = replace(config, mask=str(recipe["mask_name"]), **{name: recipe[name] for name in SETTINGS})
        number, together = recipe["number"], recipe["together"]
        models = {str(k): str(v) for k, v in recipe["models"].items()}
        if not _are_numbers(together) or number not in together or len(together) > MOST_TOGETHER:
            raise ValueError(f"{number!r}, painted together with {together!r}"[:100])
        repaint = repaint_of_recipe(workspace, recipe["from"]) if recipe.get("from") else None
        if repaint and repaint.region.shape != ids.shape:
            raise ValueError("its mask has another size than the painting that it repaints")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a recipe that can be painted ({error})") from error
    return Order(settled, str(recipe["mask_name"]), ids, (number,), repaint, models, tuple(together))


def _are_numbers(found: object) -> bool:
    """Are these paintings' numbers, each once."""
    whole = isinstance(found, list) and all(type(one) is int and 0 <= one < 2**63 for one in found)
    return whole and len(set(cast(list[int], found))) == len(cast(list[int], found))


def _check_alone(config: SampleConfig) -> None:
    """Raise a UserError where another option says what the recipe decides."""
    for one in fields(SampleConfig):
        decides = (*SETTINGS, "mask", "encoding", "size", "count", "from_")
        if one.name in decides and getattr(config, one.name) != one.default:
            raise UserError(
                f"{config.recipe}: the recipe decides this already; leave out {option_of(one.name)}"
            )


def _check_settings(recipe: dict[str, Any]) -> None:
    """Raise a ValueError where a recipe's setting is none that the options would take."""
    for one in fields(SampleConfig):
        if one.name not in SETTINGS:
            continue
        value, kind = recipe[one.name], type(one.default)
        low, high, choices = (one.metadata[name] for name in ("low", "high", "choices"))
        fits = type(value) is kind or (kind is float and type(value) is int)
        within = fits and (low is None or value >= low) and (high is None or value <= high)
        if not within or (choices and value not in choices):
            raise ValueError(f"{one.name} {value!r}")
