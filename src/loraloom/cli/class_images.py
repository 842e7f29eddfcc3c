"""``loraloom dataset class-images``: regularization images, painted by the checkpoint itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loraloom.cli.jobs import QueueHome, ToQueue, check_queue_options, put_into_queue

__all__ = ["class_images"]


def class_images(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that will be trained on.")],
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="The dataset they are for.")],
    prompt: Annotated[str, typer.Argument(help=r'The class, for example "photo of a man" or "\[filewords]".')],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="How to paint (steps=30) and dataset.KEY=VALUE of the dataset."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Pictures in all; unset: one for each training picture.")
    ] = None,
    trigger: Annotated[str, typer.Option("--trigger", help=r"The trigger word, which \[filewords] leaves out.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; unset: regularization_images/1_CLASS in the dataset folder."),
    ] = None,
    queue: ToQueue = False,
    home: QueueHome = None,
) -> None:
    """Paint regularization images of a class until there are enough. Run again after an interruption: it goes on."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.data.settings import DatasetSettings
    from loraloom.generation.settings import GenerateSettings
    from loraloom.settings import apply_overrides
    from loraloom.studio.class_images import make_class_images
    from loraloom.studio.jobs.settings import ClassImagesSettings

    data: dict[str, Any] = apply_overrides({"dataset": {"folder": str(dataset)}, "prompt": prompt}, overrides or [])
    data_settings = DatasetSettings.parse(data.pop("dataset"), source="the command line")
    settings = GenerateSettings.parse(data, source="the command line")
    check_queue_options(queue=queue, home=home)
    if queue:
        given = {"checkpoint": checkpoint, "dataset": data_settings, "paint": settings, "count": count}
        given |= {"folder": output, "trigger": trigger}
        put_into_queue(home, "class_images", ClassImagesSettings.parse(given, source="the command line"))
        return
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
        result = make_class_images(
            checkpoint, data_settings, settings, count=count, folder=output, trigger=trigger, listener=display
        )
    typer.echo(f"{result.folder}: {result.found} pictures were there, {result.painted} painted")
