"""How soon the command line answers, as whole processes, medians of 15 runs that take turns.

`tool --help` and `tool STAGE VERB --help` import no stage's models: the target is at most twice what
`python -c "import click"` takes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
TOOL = str(Path(sys.executable).with_name("tool"))
COMMANDS = {
    'python -c "import click"': [sys.executable, "-c", "import click"],
    "tool --help": [TOOL, "--help"],
    "tool annotate push --help": [TOOL, "annotate", "push", "--help"],
    "tool segment train --help": [TOOL, "segment", "train", "--help"],
    "tool generate sample --help": [TOOL, "generate", "sample", "--help"],
    "tool status": [TOOL, "status"],
}


def run() -> list[dict[str, object]]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:  # the first round warms the caches
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(one) for name, one in times.items()}
    base = medians['python -c "import click"']
    return [{"command": n, "ms": round(1000 * t, 1), "times": round(t / base, 2)} for n, t in medians.items()]
