"""`tool generate compose`: masks to paint from, made of the paintings' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from annotate.options import emit, json_option, settings, workspace_option
from annotate.progress import note
from generate.compose_config import EditConfig, EnlargeConfig, FreeConfig, MixConfig, OriginalConfig

if TYPE_CHECKING:
    from annotate.workspace import Workspace
    from generate.compose import Composed


@click.group()
def compose() -> None:
    """Masks to paint from, made of the paintings' own; each is written to compositions/NAME.png.

    MASK is the key of a painting, the name of a composition, or a PNG. Objects always keep their size.
    """


@compose.command("original")
@click.argument("mask")
@workspace_option
@json_option
@settings(OriginalConfig)
def original_command(workspace: Workspace, as_json: bool, mask: str, config: OriginalConfig) -> None:
    """A painting's own composition on a slightly larger canvas.

    \b
    Example:
      tool generate compose original scene-000
    """
    from generate.compose import compose_original

    _say(compose_original(workspace, mask, config), as_json)


@compose.command("enlarge")
@click.argument("mask")
@workspace_option
@json_option
@settings(EnlargeConfig)
def enlarge_command(workspace: Workspace, as_json: bool, mask: str, config: EnlargeConfig) -> None:
    """A larger canvas for the same objects: there is more to see, and nothing is scaled.

    \b
    Example:
      tool generate compose enlarge scene-000 --size 384x640 --anchor bottom --fill free
    """
    from generate.compose import compose_enlarged

    _say(compose_enlarged(workspace, mask, config), as_json)


@compose.command("mix")
@click.argument("first")
@click.argument("second")
@workspace_option
@json_option
@settings(MixConfig)
def mix_command(workspace: Workspace, as_json: bool, first: str, second: str, config: MixConfig) -> None:
    """A part of the FIRST mask beside or above a part of the SECOND, grown together where they meet.

    \b
    Example:
      tool generate compose mix scene-000 scene-001 --share 0.6
    """
    from generate.compose import compose_mixed

    _say(compose_mixed(workspace, first, second, config), as_json)


@compose.command("free")
@click.argument("mask")
@click.argument("regions", nargs=-1, required=True)
@workspace_option
@json_option
@settings(FreeConfig)
def free_command(
    workspace: Workspace, as_json: bool, mask: str, regions: tuple[str, ...], config: FreeConfig
) -> None:
    """Set REGIONS of a mask free: unlabelled, for the generator to imagine.

    A region is a class, a box TOP,LEFT,BOTTOM,RIGHT in pixels or percent, or a PNG that is not black there.

    \b
    Example:
      tool generate compose free scene-000 trees 0,0,40%,100%
    """
    from generate.compose import compose_free

    _say(compose_free(workspace, mask, regions, config), as_json)


@compose.command("edit")
@click.argument("mask")
@workspace_option
@json_option
@settings(EditConfig)
def edit_command(workspace: Workspace, as_json: bool, mask: str, config: EditConfig) -> None:
    """Repaint a mask by hand in Label Studio; then --pull it back as a composition.

    What is erased there becomes unlabelled, for the generator to imagine.

    \b
    Example:
      tool generate compose edit scene-000 --name dusk
      tool generate compose edit dusk --pull
    """
    from generate.edit import pull_composition, push_composition

    if config.pull:
        _say(pull_composition(workspace, mask, config), as_json)
        return
    made = push_composition(workspace, mask, config)
    lines = [f"{made.name} is {'now' if made.sent else 'already'} in Label Studio: repaint it at {made.url}"]
    if made.login is not None:
        lines.append(f"login {made.login.email}  password {made.login.password}")
    lines.append(f"then: tool generate compose edit {made.name} --pull")
    shown = {name: value for name, value in vars(made).items() if name != "login"}
    emit(shown, as_json, "\n".join(lines))


def _say(made: Composed, as_json: bool) -> None:
    for line in made.departures:
        note(f"composition: {line}")
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in made.shares.items())
    lines = [f"{made.path}  {made.size[0]} x {made.size[1]}  {shares}"]
    if made.nearest is not None:
        lines.append(f"most like {made.nearest}")
    emit(made, as_json, "\n".join([*lines, f"then: tool generate sample --mask {made.name}"]))
