"""``loraloom generate``: images from a checkpoint and a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["generate"]


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: .safetensors, .ckpt or a Diffusers folder.")],
    prompt: Annotated[str, typer.Argument(help='What to paint, for example "a cat <lora:my-style:0.8>".')],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting, for example eta=0.5.")
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", "-n", help="What not to paint.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; unset: the family's resolution.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; unset: the family's resolution.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps (20).")] = None,
    cfg_scale: Annotated[float | None, typer.Option("--cfg-scale", "--cfg", help="Guidance (7).")] = None,
    sampler: Annotated[str | None, typer.Option(help='For example "DPM++ 2M Karras" (Euler a).')] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; -1: random.")] = None,
    count: Annotated[int | None, typer.Option(help="Images to make (1).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images made at once (1).")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="Text encoder layer from the end.")] = None,
    lora_folder: Annotated[list[Path] | None, typer.Option(help="Where LoRAs are; may be repeated (loras).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the images (outputs).")] = None,
    low_memory: Annotated[bool | None, typer.Option("--low-memory", help="For GPUs with little memory.")] = None,
) -> None:
    """Paint images from text; parameters are written into each file, and the paths are printed."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.generation.settings import GenerateSettings
    from loraloom.settings import apply_overrides
    from loraloom.studio.images import generate_images

    options: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": sampler,
        "seed": seed,
        "count": count,
        "batch_size": batch_size,
        "clip_skip": clip_skip,
        "lora_folders": lora_folder,
        "output_folder": output,
        "low_memory": low_memory,
    }
    given = {name: value for name, value in options.items() if value is not None}
    settings = GenerateSettings.parse(apply_overrides(given, overrides or []), source="the command line")

    with ProgressDisplay(Console(stderr=True, highlight=False)) as display:
        saved = generate_images(checkpoint, settings, listener=display)
    for image in saved:
        typer.echo(str(image.path))
