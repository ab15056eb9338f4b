"""Options made from a config, and how a result is printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from annotate.options import emit, json_option, setting, settings, workspace_option
from annotate.workspace import Workspace


@dataclass(frozen=True)
class Kneading:
    steps: int = setting(10, "How many steps.", low=1)
    rate: float | None = setting(None, "Learning rate.", low=0.0)
    mode: str = setting("gentle", "How.", choices=("gentle", "firm"))
    warm: bool = setting(True, "Warm up first.")
    start: Path | None = setting(None, "Where to start.")

    def __post_init__(self) -> None:
        if self.mode == "firm" and not self.warm:
            raise ValueError("--mode firm needs --warm")


def run(*words: str, presets: dict[str, Kneading] | None = None) -> Result:
    @click.command()
    @workspace_option
    @json_option
    @settings(Kneading, presets)
    def knead(workspace: Workspace, as_json: bool, config: Kneading) -> None:
        """Knead."""
        emit({"config": config.__dict__, "root": str(workspace.root)}, as_json, f"{config.steps} steps")

    return CliRunner().invoke(knead, words)


def test_fields_become_options_and_defaults_hold() -> None:
    assert run("--steps", "3").stdout == "3 steps\n"
    value = json.loads(run("--json", "-w", "there", "--no-warm", "--rate", "0.5").stdout)
    assert value["root"] == "there"
    assert value["config"] == {"steps": 10, "rate": 0.5, "mode": "gentle", "warm": False, "start": None}


def test_options_override_a_preset() -> None:
    presets = {"small": Kneading(steps=2), "seed": Kneading(steps=99, rate=1.0)}
    assert run(presets=presets).stdout == "2 steps\n"
    value = json.loads(run("--preset", "seed", "--rate", "0.1", "--json", presets=presets).stdout)
    assert (value["config"]["steps"], value["config"]["rate"]) == (99, 0.1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--steps", "0"), "--steps"),
        (("--mode", "wild"), "--mode"),
        (("--rate", "nan"), "--rate nan: give a finite number"),
        (("--rate", "1e999"), "--rate inf: give a finite number"),
        (("--mode", "firm", "--no-warm"), "--mode firm needs --warm"),
    ],
)
def test_wrong_values_name_the_option_and_exit_with_2(words: tuple[str, ...], line: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert line in result.stderr


def test_help_shows_every_field_with_its_default() -> None:
    text = run("--help").stdout
    for words in ("--steps", "[default: 10]", "--mode [gentle|firm]", "--warm / --no-warm"):
        assert words in text


def test_the_workspace_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_WORKSPACE", "from-env")
    assert json.loads(run("--json").stdout)["root"] == "from-env"


def test_problems_go_to_stderr_and_the_exit_code_says_so() -> None:
    @click.command()
    def partly() -> None:
        emit({"done": 2}, True, "", problems=["a.jpg: empty file"])

    result = CliRunner().invoke(partly)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"done": 2}
    assert "left out: a.jpg: empty file" in result.stderr
    assert "1 left out" in result.stderr
