"""The recipe of a painting: all that decides it, written into the PNG and beside it, and read back from either."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from annotate.errors import UserError
from annotate.files import read_json, whole_file, write_json

Ids = NDArray[np.uint8]
SETTINGS = (
    "temperature",
    "top_k",
    "guidance",
    "seed",
    "stride",
    "precision",
)  # of SampleConfig: those that decide
CHUNK = "recipe"  # text chunk of a sampled PNG
PACKED = "mask_png"  # the mask itself, so that a recipe needs no other file; known by its digest


def digest(pixels: NDArray[np.uint8]) -> str:
    """What a recipe calls `..._sha256`: of an array's shape and bytes."""
    content = repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def pack(ids: Ids) -> str:
    """(H, W) uint8 as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(ids, mode="L").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> Ids:
    """What `pack` packed.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            return np.array(image.convert("L"))
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"a damaged mask ({error})") from error


def same(a: Mapping[str, Any] | None, b: Mapping[str, Any]) -> bool:
    """Whether two recipes are of one painting. How a mask is packed may differ, its digest does not; and what it
    was painted together with changes no more than the last digits of the numbers.
    """
    return a is not None and _deciding(a) == _deciding(b)


def write_painting(path: Path, painting: NDArray[np.uint8], recipe: Mapping[str, Any]) -> None:
    """Write a painting (H, W, 3) with its recipe in a PNG text chunk, and beside it as JSON."""
    write_json(path.with_suffix(".json"), recipe)
    write_unfinished(path, painting, recipe)  # last: where the PNG is, everything is


def write_unfinished(path: Path, painting: NDArray[np.uint8], recipe: Mapping[str, Any]) -> None:
    """Write a PNG that says its recipe, and nothing beside it."""
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, json.dumps(recipe))
    with whole_file(path) as temporary:
        Image.fromarray(painting).save(temporary, format="PNG", pnginfo=info)


def recipe_beside(path: Path) -> dict[str, Any] | None:
    """The recipe of a painting that was sampled: beside it, or where that is gone or damaged, inside.

    None where there is no painting, or one of another origin.
    """
    if not path.exists():
        return None
    return _readable(read_json, path.with_suffix(".json")) or _readable(recipe_inside, path)


def mend_recipe(path: Path) -> None:
    """Write the recipe beside a painting anew, where it is gone or damaged."""
    inside = _readable(recipe_inside, path)
    if inside is not None and _readable(read_json, path.with_suffix(".json")) is None:
        write_json(path.with_suffix(".json"), inside)


def _readable(read: Callable[[Path], Any], path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError, OSError):
        found = read(path)
        return found if isinstance(found, dict) else None
    return None


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe from its JSON file, or out of the painting.

    Raises:
        UserError: no such file, neither JSON nor a PNG with a recipe, or one that lacks something.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a sampled PNG or the JSON beside it")
    if path.suffix.lower() == ".json":
        found = read_json(path)
    else:
        found = recipe_inside(path)
        if found is None:
            raise UserError(f"{path}: has no recipe in it; give a painting that `tool generate sample` made")
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a recipe")
    wanted = {*SETTINGS, "number", "together", "mask_name", "mask_sha256", "models", PACKED}
    missing = sorted(wanted - found.keys())
    if missing:
        raise UserError(f"{path}: a recipe without {', '.join(missing)}; it was made by an earlier version")
    return found


def recipe_inside(path: Path) -> dict[str, Any] | None:
    """The recipe in a picture's text chunk; None where it has none.

    Raises:
        UserError: not an image, or a damaged recipe.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
        return dict(json.loads(text)) if isinstance(text, str) else None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: its recipe is damaged ({error})") from error


def free_path(folder: Path, stem: str, recipe: Mapping[str, Any]) -> Path:
    """Where a painting goes: where another one has its name, the recipe's digest is added."""
    plain = folder / f"{stem}.png"
    if not plain.exists() or same(recipe_beside(plain), recipe):
        return plain
    text = json.dumps(_deciding(recipe), sort_keys=True)
    return folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.png"


def _deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in recipe.items() if name not in (PACKED, "together")}
    if isinstance(found.get("from"), Mapping):
        found["from"] = {name: value for name, value in found["from"].items() if name not in ("path", PACKED)}
    return found
