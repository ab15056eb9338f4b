"""The one error that a user can mend."""

from __future__ import annotations

import click


class UserError(click.ClickException):
    """One line: what is wrong, where, and what to do next. The command exits with 1."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        click.echo(f"error: {self.format_message()}", err=True)
