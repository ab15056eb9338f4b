"""`tool demo`: the whole flow, on paintings that the demo paints itself."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from annotate.options import device_option, emit, json_option, settings
from demo.config import DemoConfig

NEXT = """Now with your own paintings, in a folder of their own:
  tool annotate push PAINTINGS      a quarter of them goes to Label Studio; it prints where, and the login
  tool annotate pull                when some are annotated there
  tool segment train
  tool segment pseudo-label
  tool segment convert
  tool generate train painting      and then mask, and transformer
  tool generate sample --mask KEY
tool status says at any time what comes next."""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
@device_option
@settings(DemoConfig)
def demo(folder: Path, as_json: bool, device: str, config: DemoConfig) -> None:
    """Run the whole flow in FOLDER, on scenes that the demo paints itself, and write a report.

    A real Label Studio, real training, real sampling; only the annotator is a stand-in, which posts the true
    regions. Run it again after it was killed: it carries on.

    \b
    Example:
      tool demo my-demo
    """
    from demo.flow import STAND_IN, run_demo

    before = signal.signal(signal.SIGTERM, _leave)
    try:
        result = run_demo(folder, config, device)
    finally:
        signal.signal(signal.SIGTERM, before)
    minutes = result.seconds / 60
    lines = [
        f"done in {minutes:.1f} min. {STAND_IN}",
        f"report:    {result.report}",
        f"paintings: {len(result.samples)} new ones in {folder / 'samples'}",
        f"look:      tool status --workspace {folder}",
        "",
        NEXT,
    ]
    emit(result, as_json, "\n".join(lines))


def _leave(*_: object) -> None:
    """On SIGTERM as on Ctrl-C: what is open is closed, and the server stopped."""
    sys.exit(143)
