"""What a server's JSON must hold before anything is made of it: it may be broken, or hostile.

Each function reads one field and raises `ValueError` with one short line that says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 2**63  # of an id or a count: what the server's database can hold


def fields(answer: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(answer, Mapping):
        raise ValueError(f"{_kind(answer)} where an object was expected")
    return answer


def number(answer: Any, name: str) -> int:
    """A whole number from 0 on."""
    value = _field(answer, name)
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{name} is {_shown(value)}, not a whole number")
    return value


def numbers(answer: Any, name: str) -> list[int]:
    """A list of whole numbers."""
    return [number({name: one}, name) for one in _list(answer, name)]


def amount(answer: Any, name: str) -> float:
    """A number from 0 on, as a time or a score is; 0 where there is none, or none that can be."""
    value = fields(answer).get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _MOST:
        return 0.0
    return float(value) if math.isfinite(value) else 0.0


def text(answer: Any, name: str) -> str:
    """A text of at most 200 characters."""
    value = _field(answer, name)
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{name} is {_shown(value)}, not a short text")
    return value


def objects(answer: Any, name: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects."""
    return [fields(one) for one in _list(answer, name)]


def _list(answer: Any, name: str) -> list[Any]:
    value = _field(answer, name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_shown(value)}, not a list")
    return value


def _field(answer: Any, name: str) -> Any:
    found = fields(answer)
    if name not in found:
        raise ValueError(f"{name} is missing")
    return found[name]


def _shown(value: Any) -> str:
    """A value in a few characters; never a long one's text, which may be as long as the answer."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**12):
        return str(value)
    if isinstance(value, int):
        return "a huge number"
    return repr(value[:20]) if isinstance(value, str) else _kind(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), "a number")
