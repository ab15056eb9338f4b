"""`tool`: the command line. Stages are imported only when one of their commands is named."""

from __future__ import annotations

import importlib
from typing import Any

import click

# name -> (module:attribute, the line that `tool --help` shows)
COMMANDS = {
    "annotate": ("annotate.commands:annotate", "Paintings to Label Studio, and the masks drawn there back."),
    "segment": (
        "segment.commands:segment",
        "Learn from the hand masks, label the rest, write shifted masks.",
    ),
    "generate": ("generate.commands:generate", "Learn the painter's hand; paint new paintings from masks."),
    "status": ("demo.status:status", "Where the workspace stands, and the command to run next."),
    "doctor": ("demo.doctor:doctor", "Check this machine, and say how to mend what is amiss."),
    "demo": ("demo.commands:demo", "The whole flow on paintings that the demo paints itself."),
}


class LazyGroup(click.Group):
    """A group whose help needs no stage, and whose stages are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> Any:
    if value:
        from importlib.metadata import version

        click.echo(f"impasto {version('impasto')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def main() -> None:
    """Teach a machine a painter's hand, and compose with it.

    \b
    paintings -> annotate (a quarter, by a person) -> segment (the rest, by a model) -> generate

    \b
    Start with:
      tool demo my-demo
      tool annotate push PAINTINGS
      tool status
    """


if __name__ == "__main__":
    main()
