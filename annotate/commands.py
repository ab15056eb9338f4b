"""`tool annotate`: paintings to Label Studio, and the masks drawn there back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotate.config import PullConfig, PushConfig, ReviewConfig
from annotate.options import emit, json_option, settings, workspace_option

if TYPE_CHECKING:
    from annotate.server import Login
    from annotate.workspace import Workspace


@click.group()
def annotate() -> None:
    """Paintings to Label Studio, and the masks drawn there back."""


@annotate.command()
@click.argument("paintings", type=click.Path(path_type=Path))
@workspace_option
@json_option
@settings(PushConfig)
def push(paintings: Path, workspace: Workspace, as_json: bool, config: PushConfig) -> None:
    """Send a share of the folder PAINTINGS to Label Studio; what is there already is not sent again.

    Without LABEL_STUDIO_URL (and LABEL_STUDIO_API_KEY) the workspace's own Label Studio is started.

    \b
    Example:
      tool annotate push PAINTINGS --fraction 0.25
    """
    from annotate.push import push as run

    result = run(workspace, paintings, config)
    lines = [
        f"{result.chosen} of {result.paintings} paintings to annotate: {result.added} sent now, {result.there} there",
        *([result.predictions.text()] if result.predictions else []),
        f"annotate at {result.url}",
        *_login_lines(result.login),
        "then: tool annotate pull",
    ]
    shown = {name: value for name, value in asdict(result).items() if name != "login"}
    emit(shown, as_json, "\n".join(lines), result.problems)


@annotate.command()
@workspace_option
@json_option
@settings(PullConfig)
def pull(workspace: Workspace, as_json: bool, config: PullConfig) -> None:
    """Fetch what was annotated, as masks/hand/KEY.png; only what changed is fetched again.

    \b
    Example:
      tool annotate pull
    """
    from annotate.pull import pull as run

    result = run(workspace, config)
    emit(result, as_json, result.text(), result.problems)


@annotate.command()
@workspace_option
@json_option
def status(workspace: Workspace, as_json: bool) -> None:
    """How far the annotation is: paintings, classes, and the time that is left.

    \b
    Example:
      tool annotate status
    """
    from annotate.standing import standing

    result = standing(workspace)
    emit(result, as_json, result.text())


@annotate.command()
@workspace_option
@json_option
@settings(ReviewConfig)
def review(workspace: Workspace, as_json: bool, config: ReviewConfig) -> None:
    """Send the paintings that the model is least sure of back to Label Studio, pre-annotated, worst first.

    What is corrected there becomes a hand mask at the next pull, and training uses it.

    \b
    Example:
      tool annotate review --count 20
    """
    from annotate.review import review as run

    result = run(workspace, config)
    lines = [
        f"{len(result.keys)} paintings to review: {result.added} sent now, {result.there} there",
        *(
            f"  {key}" + ("" if sure is None else f"  {sure:.0%} sure")
            for key, sure in zip(result.keys, result.sure, strict=True)
        ),
        result.predictions.text(),
        f"review at {result.url}",
        *_login_lines(result.login),
        "then: tool annotate pull, and tool segment train",
    ]
    shown = {name: value for name, value in asdict(result).items() if name != "login"}
    emit(shown, as_json, "\n".join(lines), result.problems)


@annotate.command()
@workspace_option
@json_option
def serve(workspace: Workspace, as_json: bool) -> None:
    """Start the workspace's own Label Studio, and print its address and login.

    It goes on running in the background, for this machine only (127.0.0.1).

    \b
    Example:
      tool annotate serve
    """
    from annotate import server

    found = server.start(workspace)
    login = server.login(workspace)
    value = {"url": found.url, "pid": found.pid, "email": login.email, "password": login.password}
    lines = [f"Label Studio runs at {found.url}", *_login_lines(login), "stop it: tool annotate stop"]
    emit(value, as_json, "\n".join(lines))


@annotate.command()
@workspace_option
@json_option
def stop(workspace: Workspace, as_json: bool) -> None:
    """Stop the workspace's own Label Studio; nothing that was drawn is lost.

    \b
    Example:
      tool annotate stop
    """
    from annotate import server

    stopped = server.stop(workspace)
    emit(
        {"stopped": stopped},
        as_json,
        "stopped" if stopped else "no Label Studio of this workspace was running",
    )


def _login_lines(login: Login | None) -> list[str]:
    return [] if login is None else [f"login {login.email}  password {login.password}"]
