"""``loraloom generate``: images from a checkpoint and a prompt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from loraloom.errors import SettingsError

__all__ = ["generate"]

_OVERRIDE = re.compile(r"[a-z_]+=")


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: .safetensors, .ckpt or a Diffusers folder.")],
    prompt: Annotated[
        str | None,
        typer.Argument(help='What to paint: "a cat <lora:my-style:0.8>". Left out with --like.'),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting, for example eta=0.5.")
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", "-n", help="What not to paint.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; unset: the checkpoint's resolution.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; unset: the checkpoint's resolution.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps (20).")] = None,
    cfg_scale: Annotated[float | None, typer.Option("--cfg-scale", "--cfg", help="Guidance (7).")] = None,
    sampler: Annotated[str | None, typer.Option(help='For example "DPM++ 2M Karras" (Euler a).')] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; -1: random.")] = None,
    count: Annotated[int | None, typer.Option(help="Images to make (1).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images made at once (1).")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="Text encoder layer from the end.")] = None,
    lora_folder: Annotated[list[Path] | None, typer.Option(help="Where LoRAs are; may be repeated (loras).")] = None,
    like: Annotated[
        Path | None, typer.Option("--like", help="An image to take the settings from; other options override them.")
    ] = None,
    init_image: Annotated[Path | None, typer.Option(help="Picture to start from (image-to-image).")] = None,
    mask: Annotated[Path | None, typer.Option(help="White where init_image is painted anew.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of the picture is painted anew (0.75).")] = None,
    hires_scale: Annotated[float | None, typer.Option(help="Paint again, this many times as large.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Another autoencoder than the checkpoint's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the images (outputs).")] = None,
    low_memory: Annotated[bool | None, typer.Option("--low-memory", help="For GPUs with little memory.")] = None,
) -> None:
    """Paint images from text; parameters are written into each file, and the paths are printed."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.events import Event, ImageSaved
    from loraloom.generation.settings import GenerateSettings
    from loraloom.settings import apply_overrides
    from loraloom.studio.images import generate_images

    overrides = overrides or []
    # An image brings its own prompt, so with --like the first word may already be a setting.
    if like is not None and prompt is not None and _OVERRIDE.match(prompt):
        overrides = [prompt, *overrides]
        prompt = None
    if like is None and prompt is None:
        raise SettingsError(["no prompt is given"], 'write what to paint: loraloom generate MODEL "a cat"')
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
        "init_image": init_image,
        "mask": mask,
        "denoising_strength": strength,
        "hires_scale": hires_scale,
        "vae": vae,
        "output_folder": output,
        "low_memory": low_memory,
    }
    given = apply_overrides({name: value for name, value in options.items() if value is not None}, overrides)
    done: list[str] = []

    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:

        def listen(event: Event) -> None:
            display(event)
            if isinstance(event, ImageSaved):
                done.append(event.path)
                typer.echo(event.path)

        if like is not None:
            from loraloom.studio.likeness import given_like

            given = given_like(like, given, checkpoint, listener=display)
        settings = GenerateSettings.parse(given, source="the command line")
        try:
            generate_images(checkpoint, settings, listener=listen)
        except KeyboardInterrupt:
            typer.echo(f"stopped: {len(done)} of {settings.count} images are finished", err=True)
            raise
