"""The house rules that a machine can check: imports point upstream, help is quick and complete."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli import main

ROOT = Path(__file__).parents[1]
UPSTREAM = {
    "annotate": {"annotate"},
    "segment": {"annotate", "segment"},
    "generate": {"annotate", "segment", "generate"},
    "demo": {"annotate", "segment", "generate", "demo"},
}
HEAVY = ("torch", "torchvision", "lightning", "label_studio_sdk", "skimage", "numpy")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("stage", list(UPSTREAM))
def test_imports_point_upstream(stage: str) -> None:
    files = list((ROOT / stage).glob("*.py"))
    assert files
    for path in files:
        for module in imported(path):
            top = module.split(".")[0]
            assert top not in set(UPSTREAM) - UPSTREAM[stage], f"{path.name} imports {module}"
            assert top != "cli", f"{path.name} imports the command line"
            if top == "label_studio_sdk":
                assert (stage, path.name) == ("annotate", "access.py"), f"{path.name} imports the SDK"


def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, (*words, name))


COMMANDS = dict(walk(main, ("tool",)))


def test_the_designs_commands_are_there() -> None:
    wanted = {
        "annotate": ("push", "pull", "status", "serve", "stop"),
        "segment": ("train", "pseudo-label", "evaluate", "convert", "report", "assist"),
        "generate": ("train", "sample", "import", "export"),
    }
    for stage, verbs in wanted.items():
        for verb in verbs:
            assert ("tool", stage, verb) in COMMANDS
    for alone in ("status", "doctor", "demo"):
        assert ("tool", alone) in COMMANDS


@pytest.mark.parametrize("words", list(COMMANDS), ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    if not isinstance(command, click.Group):
        assert "Example:" in command.help, f"{' '.join(words)} has no example"
        assert f"  {' '.join(words)}" in command.help.split("Example:")[1], "the example runs another command"
        options = {name for parameter in command.params for name in parameter.opts}
        assert "--json" in options, f"{' '.join(words)} has no --json"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(words)} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("stage", ["annotate", "segment", "generate", "status", "doctor", "demo"])
def test_help_imports_nothing_heavy(stage: str) -> None:
    verbs = [words[1:] for words in COMMANDS if words[1:2] == (stage,)]
    code = (
        "import sys, click; from cli import main\n"
        f"for words in {verbs!r}:\n"
        "    try: main([*words, '--help'], prog_name='tool')\n"
        "    except SystemExit as done: assert done.code == 0, words\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_version_is_the_distributions() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.startswith("impasto 0.")
