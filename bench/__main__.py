"""Run the benchmarks: `python -m bench [NAME...] [--write]`.

A benchmark is a module of this package with `run() -> list[dict[str, object]]`: the rows of its table. The
module's docstring says what was measured, and against what.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
import numpy as np

import bench

SHARED = ("__main__", "proxy", "browser", "timing", "reference_step")  # no benchmarks themselves
DOCS = Path(__file__).parent.parent / "docs"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--write", is_flag=True, help="Also write docs/bench-NAME.md.")
def main(names: tuple[str, ...], write: bool) -> None:
    """Run the named benchmarks, or all but those that need a GPU.

    \b
    Example:
      python -m bench brush exporter --write
    """
    found = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in SHARED]
    if unknown := set(names) - set(found):
        raise click.UsageError(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    for name in names or [one for one in found if not one.endswith("_gpu")]:
        module = importlib.import_module(f"bench.{name}")
        text = f"# {name}\n\n{inspect.getdoc(module)}\n\n{markdown(module.run())}\n\n{machine()}\n"
        click.echo(text)
        if write:
            (DOCS / f"bench-{name}.md").write_text(text, encoding="utf-8")


def markdown(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows with the same keys as a markdown table."""
    rows = list(rows)
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """One line that says where the figures come from."""
    torch = sys.modules.get("torch")
    there = torch is not None and torch.cuda.is_available()
    gpu = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, " if torch and there else ""
    return f"{gpu}{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, NumPy {np.__version__}."


def _cell(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    main()
