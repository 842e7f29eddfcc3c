"""``loraloom grid``: images over two or three axes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["grid"]


def grid(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: .safetensors, .ckpt or a Diffusers folder.")],
    prompt: Annotated[str, typer.Argument(help="What to paint.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting of `loraloom generate`.")
    ] = None,
    x: Annotated[str, typer.Option("-x", help="Columns: NAME=VALUES, such as weight=0-1 (+0.25).")] = "",
    y: Annotated[str, typer.Option("-y", help="Rows.")] = "",
    z: Annotated[str, typer.Option("-z", help="A sheet for each value.")] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the images; it also records what is painted already.")
    ] = Path("grid"),
    run: Annotated[Path | None, typer.Option("--run", help="The training run whose epochs an axis shows.")] = None,
    negative: Annotated[str | None, typer.Option("--negative", "-n", help="What not to paint.")] = None,
    lora_folder: Annotated[list[Path] | None, typer.Option(help="Where LoRAs are; may be repeated (loras).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images painted at once.")] = 4,
    title: Annotated[str, typer.Option(help="Above the sheet.")] = "",
) -> None:
    """Paint a table of images over any settings, LoRAs, weights, epochs, prompts or checkpoints.

    Axes: any setting, or lora, weight, unet_weight, te_weight, epoch, replace (the first value is searched for in the
    prompt and replaced by the others), checkpoint. Values are separated by commas; ranges are 1-5, 0-1 (+0.25) or 3-9
    [4]. Run the same command again after an interruption: it goes on where it stopped.
    """
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.settings import apply_overrides
    from loraloom.studio.grids import plan_grid, read_axis, run_grid

    options: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative, "lora_folders": lora_folder}
    given = {name: value for name, value in options.items() if value is not None}
    axes = [read_axis(text) for text in (x, y, z) if text]
    axes, cells = plan_grid(checkpoint, apply_overrides(given, overrides or []), axes, run=run)
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
        result = run_grid(output, axes, cells, title=title, batch_size=batch_size, listener=display)
    typer.echo(f"{len(result.cells)} images, {result.painted} of them painted now")
    for sheet in result.sheets:
        typer.echo(f"sheet: {sheet}")
    typer.echo(f"page: {result.page}")
