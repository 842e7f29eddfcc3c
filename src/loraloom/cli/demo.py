"""``loraloom demo``: the whole job, start to end, on drawings that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A new folder for everything the demo makes.", show_default="loraloom-demo"),
    ] = None,
    character: Annotated[
        bool, typer.Option("--character", help="Teach a character with regularization images instead of a style.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Training epochs.", show_default="3 to 7 minutes' worth")
    ] = None,
) -> None:
    """Run the whole job once and explain it: dataset, training, LoRA on the fly, merge. Some minutes on two cores."""
    from rich.console import Console

    from loraloom.cli.dataset import show_report
    from loraloom.cli.progress import ProgressDisplay
    from loraloom.data.settings import DatasetSettings
    from loraloom.studio.datasets import check_dataset
    from loraloom.studio.demo import CHARACTER, RESOLUTION_PX, STYLE, run_demo
    from loraloom.studio.stopping import StopRequest, stop_on_signals

    console = Console(highlight=False, emoji=False)
    folder = folder or Path("loraloom-demo-character" if character else "loraloom-demo")

    def show_dataset(path: Path) -> None:
        settings = DatasetSettings(folder=path, resolution=RESOLUTION_PX)
        show_report(check_dataset(settings), console)

    def say(text: str) -> None:
        # Not every terminal can show the letters of the small curve.
        text = text.encode(console.encoding, "replace").decode(console.encoding)
        console.print(text, style="bold" if text[:1].isdigit() else "", markup=False, soft_wrap=True)

    stop = StopRequest()
    with ProgressDisplay(console) as display, stop_on_signals(stop, display):
        result = run_demo(
            folder,
            plan=CHARACTER if character else STYLE,
            listener=display,
            say=say,
            show_dataset=show_dataset,
            epochs=epochs,
            control=stop,
        )

    for line in _with_your_own(character=character):
        say(line)
    say(f"Everything is in {result.folder}, made in {result.seconds:.0f} s. To look at first:")
    say(f"   {result.weights_sheet}   the LoRA's work")
    say(f"   {result.epochs_sheet}    how it learned")
    say(f"   {result.curves}   the learning curves")


def _with_your_own(*, character: bool) -> list[str]:
    """The same again with pictures and a checkpoint of one's own, as commands."""
    of_a_class = (
        '   loraloom dataset class-images YOUR.safetensors FOLDER "photo of a man"   (the regularization images)'
    )
    lines = [
        "6. Now with your own pictures and checkpoint",
        "   Put 10 to 50 pictures into a folder 10_NAME, each with a .txt file of the same name: a caption with a",
        "   trigger word of your own. Cut away what you never want to see. Then:",
        "   loraloom dataset check FOLDER",
        *([of_a_class] if character else []),
        "   loraloom train checkpoint=YOUR.safetensors dataset.folder=FOLDER name=NAME \"preview.prompts=['PROMPT']\"",
        '   loraloom generate YOUR.safetensors "what to see, <lora:NAME:0.8>" --lora-folder runs/NAME/weights',
        "   loraloom merge YOUR.safetensors runs/NAME/weights/NAME.safetensors:0.8 -o merged.safetensors",
    ]
    return lines if character else [*lines, "   A person or a character instead of a style: loraloom demo --character"]
