"""Click options: made from a stage's config, or shared by every command."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from annotate.errors import UserError

Command = TypeVar("Command", bound=Callable[..., Any])
PRESET = "preset"


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str | int] = (),
    low: float | None = None,
    high: float | None = None,
    source: str = "",
) -> Any:
    """A field of a config dataclass that becomes the option `--its-name`.

    Args:
        default: its value when nobody says otherwise.
        help: the option's help text.
        choices: the only strings or numbers allowed.
        low, high: the smallest and largest number allowed.
        source: where the default comes from: a paper's section, or a repository and file.
    """
    about = {"help": help, "choices": tuple(choices), "low": low, "high": high, "source": source}
    return dataclasses.field(default=default, metadata=about)


def settings(config: type, presets: Mapping[str, Any] | None = None) -> Callable[[Command], Command]:
    """Give a command one option for each field of `config`; it is called with `config=` the filled instance.

    With `presets` the command also takes `--preset`, whose values each option then overrides.
    """
    hints = typing.get_type_hints(config)
    fields = [one for one in dataclasses.fields(config) if one.metadata.get("help")]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(*args: Any, **kwargs: Any) -> Any:
            base = presets[kwargs.pop(PRESET)] if presets else None
            values = {one.name: kwargs.pop(one.name) for one in fields}
            given = {name: value for name, value in values.items() if value is not None}
            _check_finite(given)
            try:
                kwargs["config"] = dataclasses.replace(base, **given) if base else config(**given)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            return command(*args, **kwargs)

        wrapped: Any = call
        for one in reversed(fields):
            wrapped = _option(one, hints[one.name], bool(presets))(wrapped)
        if presets:
            names = list(presets)
            chosen = click.option(
                f"--{PRESET}",
                type=click.Choice(names),
                default=names[0],
                show_default=True,
                help="Sizes and schedule.",
            )
            wrapped = chosen(wrapped)
        return typing.cast(Command, wrapped)

    return decorate


def option_of(name: str) -> str:
    """The option of a config's field: `save_every` is --save-every; `from_`, Python's way to say it, --from."""
    return "--" + name.rstrip("_").replace("_", "-")


def _check_finite(values: Mapping[str, Any]) -> None:
    """Raise a UsageError for a float that is not a number or infinite: Click takes both, whatever the range."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise click.UsageError(f"{option_of(name)} {value}: give a finite number")


def _option(one: dataclasses.Field[Any], hint: Any, preset: bool) -> Callable[[Any], Any]:
    flag = option_of(one.name)
    about = one.metadata
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    several = typing.get_origin(hint) is tuple  # tuple[str, ...]: may be given more than once
    if several:
        hint = typing.get_args(hint)[0]
    shown = "from the preset" if preset else ("none" if one.default is None else str(one.default))
    shown = "" if (one.default in (None, "") or several) and not preset else f"  [default: {shown}]"
    text = about["help"] + shown
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", one.name, default=None, help=text)
    kind: Any = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: click.Path(path_type=Path)}[
        hint
    ]
    convert = None
    if about["choices"]:
        kind = click.Choice([str(one) for one in about["choices"]])
        convert = _to_int if hint is int else None
    elif hint is int and (about["low"] is not None or about["high"] is not None):
        kind = click.IntRange(about["low"], about["high"])
    elif hint is float and (about["low"] is not None or about["high"] is not None):
        kind = click.FloatRange(about["low"], about["high"])
    return click.option(
        flag, one.name, type=kind, callback=convert, default=None, multiple=several, help=text
    )


def _to_int(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else int(value)


def workspace_option(command: Command) -> Command:
    """`--workspace FOLDER`: the command gets `workspace=Workspace(FOLDER)`."""

    def build(context: click.Context, parameter: click.Parameter, value: Path) -> Any:
        from annotate.workspace import Workspace

        return Workspace(value.expanduser())

    return click.option(
        "-w",
        "--workspace",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(),
        envvar="TOOL_WORKSPACE",
        show_envvar=True,
        callback=build,
        help="Folder that holds everything.  [default: the current folder]",
    )(command)


def json_option(command: Command) -> Command:
    """`--json`: the command gets `as_json`, and prints one object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def device_option(command: Command) -> Command:
    """`--device auto|cpu|cuda`, as the string `device`."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where the model runs; auto takes a GPU where there is one.",
    )(command)


def emit(result: Any, as_json: bool, text: str, problems: Sequence[str] = ()) -> None:
    """Print a command's result: one JSON object, or `text`; then each problem on stderr, and exit 1 if any.

    Args:
        result: a dataclass or a dict.
        problems: one line for each input that was left out while the rest went on.
    """
    if as_json:
        value = (
            dataclasses.asdict(result)
            if dataclasses.is_dataclass(result) and not isinstance(result, type)
            else result
        )
        click.echo(json.dumps(value, ensure_ascii=False, default=str))
    else:
        click.echo(text)
    for line in problems:
        click.echo(f"left out: {line}", err=True)
    if problems:
        raise UserError(f"{len(problems)} left out, the rest is done; mend them and run the command again")
