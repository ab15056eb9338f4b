"""`tool generate`: train the generator, and paint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotate.options import device_option, emit, json_option, settings, workspace_option
from generate.compose_commands import compose
from generate.evaluate_config import EvaluateConfig
from generate.sample_config import SampleConfig
from generate.train_commands import train

if TYPE_CHECKING:
    from annotate.workspace import Workspace


@click.group()
def generate() -> None:
    """Learn the painter's hand from paintings and shifted masks; paint new paintings from masks."""


generate.add_command(train)
generate.add_command(compose)


@generate.command("sample")
@workspace_option
@json_option
@device_option
@settings(SampleConfig)
def sample_command(workspace: Workspace, as_json: bool, device: str, config: SampleConfig) -> None:
    """Paint new paintings from a mask.

    \b
    Example:
      tool generate sample --mask scene-000 --count 4 --seed 1
      tool generate sample --from scene-000 --repaint trees --guidance 1.5
      tool generate sample --recipe samples/scene-000-seed1-00.png
    """
    from generate.sample import sample

    result = sample(workspace, config, device)
    lines = [
        f"{one.path}  {one.size[0]} x {one.size[1]}{'' if one.painted else '  there already'}"
        for one in result.samples
    ]
    if any(one.painted for one in result.samples):
        lines.append(
            f"{result.tokens} tokens each, {result.tokens_a_second:.0f} tokens/s, {result.seconds:.1f} s"
        )
    emit(result, as_json, "\n".join(lines))


@generate.command("evaluate")
@workspace_option
@json_option
@device_option
@settings(EvaluateConfig)
def evaluate_command(workspace: Workspace, as_json: bool, device: str, config: EvaluateConfig) -> None:
    """Measure the generator on held-out paintings, and on new ones painted from their masks.

    Reconstruction, use of the codebooks, bits a token, sliced Wasserstein distance, composition (what the project's
    DeepLab sees against the mask asked for) and originality, in reports/generate-evaluate.html.

    \b
    Example:
      tool generate evaluate --masks 4
    """
    from generate.evaluate import evaluate
    from generate.evaluation import summary

    result = evaluate(workspace, config, device)
    emit(result, as_json, summary(result))


@generate.command("import")
@workspace_option
@json_option
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The YAML that the checkpoint was trained with.",
)
@click.option(
    "--stage",
    type=click.Choice(["painting", "mask"]),
    default="painting",
    show_default=True,
    help="What a checkpoint of a single VQGAN is.",
)
@click.option("--replace", is_flag=True, help="Models that the workspace has already may go.")
def import_command(
    workspace: Workspace, as_json: bool, checkpoint: Path, config_file: Path, stage: str, replace: bool
) -> None:
    """Take a taming-transformers checkpoint into the workspace, without running any code from it.

    \b
    Example:
      tool generate import last.ckpt --config project.yaml
    """
    from generate.taming import import_checkpoint

    result = import_checkpoint(workspace, checkpoint, config_file, stage, replace)
    lines = [f"{name}: {count / 1e6:.1f} M parameters" for name, count in result.models.items()]
    if result.missing:
        lines.append(f"still missing: {', '.join(result.missing)}; import or train them too")
        lines.append(f"next: tool generate train {result.missing[0].removesuffix('-codes')}")
    else:
        lines.append("next: tool generate sample --mask MASK.png --encoding raw")
    emit(result, as_json, "\n".join(lines))


@generate.command("export")
@workspace_option
@json_option
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--stage",
    type=click.Choice(["whole", "painting", "mask"]),
    default="whole",
    show_default=True,
    help="All three models as one, or a single VQGAN.",
)
def export_command(workspace: Workspace, as_json: bool, checkpoint: Path, stage: str) -> None:
    """Write the workspace's generator as a checkpoint and YAML that taming-transformers loads.

    \b
    Example:
      tool generate export last.ckpt
    """
    from generate.taming import export_checkpoint

    result = export_checkpoint(workspace, checkpoint, stage)
    emit(result, as_json, f"{result.checkpoint}\n{result.config}\n{result.tensors} tensors")
