"""What `tool generate compose` can be told. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from annotate.options import setting

ANCHOR_NAMES = (
    "centre",
    "top",
    "bottom",
    "left",
    "right",
    "top-left",
    "top-right",
    "bottom-left",
    "bottom-right",
)
_FILLS = ("mirror", "continue", "free")
LONGER = 1.5  # times that each side of a canvas grows where nobody says how much
_ENCODING = "What a foreign PNG holds, that does not say it."
_ENCODINGS = ("raw", "shifted")
_NAME = "Name of the composition, compositions/NAME.png; made from what it is made of without."
_CHECK = "Say what departs from the workspace's own paintings."
_FILL = (
    "The new parts: `mirror` the sides and continue the classes up and down, `continue` the border's classes "
    "on every side, or leave them `free` to imagination."
)
_ANCHOR = "Where the old canvas lies in the new one."


@dataclass(frozen=True)
class OriginalConfig:
    """A painting's own composition with a little more canvas around it."""

    margin: int = setting(16, "Pixels added on every side.", low=0, high=4096)
    fill: str = setting("mirror", _FILL, choices=_FILLS)
    name: str | None = setting(None, _NAME)
    encoding: str | None = setting(None, _ENCODING, choices=_ENCODINGS)
    check: bool = setting(True, _CHECK)


@dataclass(frozen=True)
class EnlargeConfig:
    """A larger canvas for the same objects."""

    size: str | None = setting(None, "New canvas HxW in pixels.")
    by: float | None = setting(
        None,
        f"Instead of --size: how many times each side becomes longer.  [default: {LONGER}]",
        low=0.1,
        high=100.0,
    )
    anchor: str = setting("centre", _ANCHOR, choices=ANCHOR_NAMES)
    fill: str = setting("mirror", _FILL, choices=_FILLS)
    name: str | None = setting(None, _NAME)
    encoding: str | None = setting(None, _ENCODING, choices=_ENCODINGS)
    check: bool = setting(True, _CHECK)

    def __post_init__(self) -> None:
        if self.size is not None and self.by is not None:
            raise ValueError("--size and --by: give one of them")


@dataclass(frozen=True)
class MixConfig:
    """One painting's part beside or above another's."""

    direction: str = setting(
        "beside", "The first left of the second, or above it.", choices=("beside", "above")
    )
    share: float = setting(0.5, "How much of each is taken; 1 takes both whole.", low=0.05, high=1.0)
    border: int = setting(48, "Width in pixels of the band in which both grow together.", low=0, high=4096)
    name: str | None = setting(None, _NAME)
    encoding: str | None = setting(None, _ENCODING, choices=_ENCODINGS)
    check: bool = setting(True, _CHECK)


@dataclass(frozen=True)
class FreeConfig:
    """Regions left to imagination."""

    grow: int = setting(0, "Pixels by which the regions are widened.", low=0, high=4096)
    name: str | None = setting(None, _NAME)
    encoding: str | None = setting(None, _ENCODING, choices=_ENCODINGS)
    check: bool = setting(True, _CHECK)


@dataclass(frozen=True)
class EditConfig:
    """A composition repainted by hand in Label Studio."""

    name: str | None = setting(None, _NAME)
    encoding: str | None = setting(None, _ENCODING, choices=_ENCODINGS)
    pull: bool = setting(False, "Fetch what was repainted, as the composition.")
    check: bool = setting(True, _CHECK)
    url: str | None = setting(
        None,
        "Label Studio's address, or `embedded`.  [default: LABEL_STUDIO_URL, then tool.toml's, then embedded]",
    )
