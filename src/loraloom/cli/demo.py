"""``loraloom demo``: the whole job, start to end, on drawings that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Argument(help="A new folder for everything the demo makes.")] = Path("loraloom-demo"),
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Training epochs of 60 steps.")] = 4,
) -> None:
    """Run the whole job once: dataset, training, LoRA on the fly, merge. Takes a few minutes on two CPU cores."""
    from rich.console import Console

    from loraloom.cli.dataset import show_report
    from loraloom.cli.progress import ProgressDisplay
    from loraloom.data.settings import DatasetSettings
    from loraloom.studio.datasets import check_dataset
    from loraloom.studio.demo import RESOLUTION_PX, run_demo
    from loraloom.studio.training import StopRequest, stop_on_signals

    console = Console(highlight=False)

    def show_dataset(path: Path) -> None:
        settings = DatasetSettings(folder=path, resolution=RESOLUTION_PX)
        show_report(check_dataset(settings), console)

    def say(text: str) -> None:
        console.print(text, style="bold" if text[:1].isdigit() else "", markup=False, soft_wrap=True)

    stop = StopRequest()
    with ProgressDisplay(console) as display, stop_on_signals(stop, display):
        result = run_demo(folder, listener=display, say=say, show_dataset=show_dataset, epochs=epochs, stop=stop)

    say("6. What came of it")
    say(f"   LoRA               {result.lora}")
    say(f"   previews           {result.previews[0].parent} ({len(result.previews)} images)")
    say(f"   without the LoRA   {result.image_without}")
    say(f"   with it            {result.image_with} (differs by up to {result.lora_pixel_difference} of 255)")
    say(f"   merged checkpoint  {result.merged_checkpoint}")
    say(
        f"   its image          {result.image_merged} (differs from the one on the fly by at most "
        f"{result.merge_pixel_difference} of 255 in a pixel, {result.merge_latent_difference:.1e} in the latent)"
    )
    say(f"   in {result.seconds:.0f} s")
    say("Now yours: put pictures with captions into a folder, then")
    say("   loraloom dataset check FOLDER")
    say("   loraloom train checkpoint=YOUR.safetensors dataset.folder=FOLDER name=NAME")
    say('   loraloom generate YOUR.safetensors "what to see, <lora:NAME:0.8>" --lora-folder runs/NAME/weights')
