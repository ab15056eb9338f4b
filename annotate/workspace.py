"""The workspace: one folder that holds everything, and where each thing lies in it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import read_json, write_json, write_whole

# Larger paintings make the editor slow: docs/bench-editor.md.
MAX_SIDE = 2000


@dataclass(frozen=True)
class Settings:
    """What `tool.toml` says. No secrets."""

    fraction: float = 0.25
    seed: int = 0
    max_side: int = MAX_SIDE  # pixels of a painting's longer side on the server; 0: as it is
    studio_url: str = ""  # empty: the embedded server of this workspace
    studio_project: int | None = None
    classes: ClassTable = field(default_factory=ClassTable)

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}, not from 0 to 1")
        for name in ("seed", "max_side"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, below 0")


@dataclass(frozen=True)
class Workspace:
    """Paths of one workspace. Making one touches nothing on disk."""

    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "tool.toml"

    @property
    def index_file(self) -> Path:
        return self.root / "paintings.jsonl"

    @property
    def studio_folder(self) -> Path:
        return self.root / ".label-studio"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def compositions(self) -> Path:
        """Folder of the masks that a user composed."""
        return self.root / "compositions"

    def composition(self, name: str) -> Path:
        """`compositions/NAME.png`.

        Raises:
            UserError: a name that would lie outside the folder (absolute, or with `..`).
        """
        try:
            return self.compositions / f"{safe_key(name)}.png"
        except UserError as error:
            raise UserError(f"{name!r}: would lie outside compositions/; choose another --name") from error

    def masks(self, kind: str) -> Path:
        """Folder of `hand`, `pseudo`, `confidence` or `shifted` masks."""
        if kind not in ("hand", "pseudo", "confidence", "shifted"):
            raise ValueError(f"no masks of kind {kind!r}")
        return self.root / "masks" / kind

    def mask(self, kind: str, key: str) -> Path:
        """`masks/KIND/KEY.png`.

        Raises:
            UserError: a key that would lie outside the folder (absolute, or with `..`).
        """
        return self.masks(kind) / f"{safe_key(key)}.png"

    def outdated(self, key: str, mark: str) -> Path:
        """`masks/outdated/KEY.MARK.png`: a hand mask that had to make room, and is kept."""
        return self.root / "masks" / "outdated" / f"{safe_key(key)}.{mark}.png"

    def model(self, name: str) -> Path:
        """Folder of one model: `deeplab`, `painting-codes`, `mask-codes` or `transformer`."""
        return self.root / "models" / name

    def keys_with_mask(self, kind: str) -> list[str]:
        """Keys that have a mask of this kind, sorted."""
        folder = self.masks(kind)
        if not folder.is_dir():
            return []
        found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.png"))
        return sorted(key.as_posix() for key in found)

    def settings(self) -> Settings:
        """Read `tool.toml`; without one, the defaults.

        Raises:
            UserError: the file is not TOML, or a value has another type or is out of range.
        """
        if not self.settings_file.exists():
            return Settings()
        try:
            table = tomllib.loads(self.settings_file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.settings_file}: {error}; mend that line") from error
        for name, kind, written in (("studio", dict, "[studio]"), ("classes", list, "[[classes]]")):
            if not isinstance(table.get(name, kind()), kind):
                raise UserError(
                    f"{self.settings_file}: {name} is {table[name]!r}; write it as {written} table"
                )
        studio = table.get("studio", {})
        try:
            return Settings(
                fraction=float(table.get("fraction", 0.25)),
                seed=int(table.get("seed", 0)),
                max_side=int(table.get("max_side", MAX_SIDE)),
                studio_url=str(studio.get("url", "")),
                studio_project=int(studio["project"]) if "project" in studio else None,
                classes=ClassTable.from_list(table["classes"]) if "classes" in table else ClassTable(),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.settings_file}: {error}; mend that value") from error

    def save_settings(self, **changes: Any) -> Settings:
        """Change some settings in `tool.toml`, keeping the user's comments and every other line."""
        import tomlkit

        before = self.settings()
        after = replace(before, **changes)
        if self.settings_file.exists():
            document = tomlkit.parse(self.settings_file.read_text(encoding="utf-8"))
        else:
            document = tomlkit.document()
            document.add(
                tomlkit.comment(
                    "Settings of this workspace. Where regions overlap, the higher `order` is seen."
                )
            )
        document["fraction"] = after.fraction
        document["seed"] = after.seed
        if after.max_side != MAX_SIDE or "max_side" in document:
            document["max_side"] = after.max_side
        studio = document.setdefault("studio", tomlkit.table())
        studio["url"] = after.studio_url
        if after.studio_project is not None:
            studio["project"] = after.studio_project
        if "classes" not in document or after.classes != before.classes:
            rows = tomlkit.aot()
            for row in after.classes.as_list():
                rows.append(tomlkit.item(row))
            document["classes"] = rows
        write_whole(self.settings_file, tomlkit.dumps(document))
        return after

    def save_report(self, name: str, figures: dict[str, Any]) -> Path:
        """Keep a step's last figures in `reports/NAME.json`, where `status` and the report find them."""
        path = self.reports / f"{name}.json"
        write_json(path, figures)
        return path

    def report(self, name: str) -> dict[str, Any] | None:
        """A step's last figures; None where it has not run."""
        path = self.reports / f"{name}.json"
        return dict(read_json(path)) if path.exists() else None


def safe_key(key: str) -> str:
    """The key, if it names a place inside a folder.

    Raises:
        UserError: empty, absolute, with a backslash or NUL, or with a part that is `.` or `..`.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise UserError(f"key {key!r} would lie outside the workspace; rename the painting")
    return key
