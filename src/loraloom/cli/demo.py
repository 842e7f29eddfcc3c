"""``loraloom demo``: the whole job, start to end, on drawings that come with the package, explained as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraloom.cli.jobs import QueueHome, ToQueue, check_queue_options, put_into_queue
from loraloom.plain_data import size_text

if TYPE_CHECKING:
    from loraloom.events import Event

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
    queue: ToQueue = False,
    home: QueueHome = None,
) -> None:
    """Run the whole job once and explain it: dataset, training, LoRA on the fly, merge. Some minutes on two cores."""
    from rich.console import Console

    from loraloom.cli.dataset import show_report
    from loraloom.cli.progress import ProgressDisplay
    from loraloom.data.settings import DatasetSettings
    from loraloom.errors import SettingsError
    from loraloom.events import StageReached
    from loraloom.studio.datasets import check_dataset
    from loraloom.studio.demo import CHARACTER, RESOLUTION_PX, STYLE, run_demo
    from loraloom.studio.jobs.settings import DemoSettings
    from loraloom.studio.stopping import StopRequest, stop_on_signals

    check_queue_options(queue=queue, home=home)
    if queue:
        if folder is not None:
            raise SettingsError(["a demo of the queue has a folder of its own"], "leave the folder out")
        put_into_queue(home, "demo", DemoSettings(character=character, epochs=epochs))
        return
    console = Console(highlight=False, emoji=False)
    folder = folder or Path("loraloom-demo-character" if character else "loraloom-demo")

    def say(text: str) -> None:
        # Not every terminal can show the letters of the small curve.
        text = text.encode(console.encoding, "replace").decode(console.encoding)
        console.print(text, style="bold" if text[:1].isdigit() else "", markup=False, soft_wrap=True)

    stop = StopRequest()
    with ProgressDisplay(console) as display, stop_on_signals(stop, display):

        def listen(event: Event) -> None:
            if not isinstance(event, StageReached):
                display(event)
                return
            for line in explanation(event.stage, event.facts):
                say(line)
            if event.stage == "prepared":
                settings = DatasetSettings(folder=Path(event.facts["folder"]), resolution=RESOLUTION_PX)
                show_report(check_dataset(settings), console)

        plan = CHARACTER if character else STYLE
        result = run_demo(folder, plan=plan, epochs=epochs, listener=listen, control=stop)

    say(f"Everything is in {result.folder}, made in {result.seconds:.0f} s. To look at first:")
    say(f"   {result.weights_sheet}   the LoRA's work")
    say(f"   {result.epochs_sheet}    how it learned")
    say(f"   {result.curves}   the learning curves")


def explanation(stage: str, facts: Mapping[str, Any]) -> list[str]:
    """What the demo says when it comes to a stage of :data:`loraloom.studio.demo.STAGES`."""
    told = _TEXTS.get(stage)
    return [] if told is None else list(told(facts))


def _checkpoint(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "1. What a LoRA is: a small file that teaches a Stable Diffusion checkpoint something new"
    yield "   The checkpoint itself stays as it is; beside the layers of its U-Net and its text encoder, small pairs of"
    yield "   matrices are trained. Your checkpoint will be a real one. The demo's comes with the package, in the file"
    yield "   layout of a real one: tiny, trained from scratch on emoji drawings, it knows a hundred simple things."
    yield f"   {facts['path']} ({size_text(facts['bytes'])})"
    yield "2. How it is used: on the fly, with a weight you choose for each picture, or merged into a checkpoint"
    yield "   On the fly is the recommended way, since the weight stays free. Step 5 does both."


def _dataset(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "3. Preparing a dataset: pictures with captions in a folder n_name, where n is the number of repeats"
    trigger = facts["trigger"]
    yield f"   Each caption says what the picture shows, with a word of its own for what is taught: {trigger!r}."
    yield "   That is the trigger word, by which you call it in a prompt later."


def _regularization(facts: Mapping[str, Any]) -> Iterator[str]:
    count = facts["images"]
    yield f"   Regularization images: {count} pictures that the checkpoint itself paints of things of that kind"
    yield "   without the trigger word (at least as many as training images). They show the LoRA what must not"
    yield "   change. Their captions are the prompts they were painted from."


def _training(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "4. Training: add noise to a picture, let the model predict the noise, correct the LoRA a little; repeat"
    lr = facts["lr"]
    yield f"   Learning rate {lr:g}, far more than the 1e-4 that suits a real checkpoint: this one is tiny, and"
    yield "   time is short. After each epoch the LoRA is saved and the same pictures are painted from the same"
    yield "   seeds; compare them, and take the epoch you like best."


def _trained(facts: Mapping[str, Any]) -> Iterator[str]:
    from loraloom.studio.curves import sparkline

    values = facts["losses"]
    size, whole = size_text(facts["bytes"]), size_text(facts["checkpoint_bytes"])
    yield f"   The loss, averaged: {values[0]:.3f} {sparkline(values)} {values[-1]:.3f}"
    seen = "some noise is easier to predict than other noise; only its average means something,"
    yield f"   It jumps from step to step, since {seen}"
    yield "   and a low one does not prove that the pictures are good. Look at them as well."
    yield f"   {facts['curves']}"
    yield f"   {facts['lora']} ({size}; the checkpoint: {whole})"


def _weights(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "5. The result"
    how = "<lora:NAME:WEIGHT> in the prompt. Each row has"
    yield f"   The same prompts at rising weights of the LoRA, on the fly: {how}"
    yield "   one seed, so all that differs in it is the weight. None of these prompts is a caption of the dataset."


def _weighed(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"   {facts['sheet']}"
    if facts["changed_without"] is not None:
        changed = f"{facts['changed_with_trigger']:.0f} of 255 on average"
        yield f"   With the trigger word {facts['trigger']!r} the pictures change by {changed},"
        yield f"   without it by {facts['changed_without']:.0f}: that is what the regularization images are for."


def _merge(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "   The same LoRA merged: a checkpoint of its own that needs no LoRA, and paints the same picture."


def _merged(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"   {facts['changed']} of {facts['tensors']} tensors changed: {facts['checkpoint']}"
    yield f"   Its picture differs from the one on the fly by at most {facts['difference']} of 255: {facts['sheet']}"


def _end(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "6. Now with your own pictures and checkpoint"
    yield "   Put 10 to 50 pictures into a folder 10_NAME, each with a .txt file of the same name: a caption with a"
    yield "   trigger word of your own. Crop out what you never want to see. Then:"
    yield "   loraloom dataset check FOLDER"
    if facts["regularization"]:
        yield '   loraloom dataset class-images YOUR.safetensors FOLDER "photo of a man"   (the regularization images)'
    yield "   loraloom train checkpoint=YOUR.safetensors dataset.folder=FOLDER name=NAME \"preview.prompts=['PROMPT']\""
    yield '   loraloom generate YOUR.safetensors "what to see, <lora:NAME:0.8>" --lora-folder runs/NAME/weights'
    yield "   loraloom merge YOUR.safetensors runs/NAME/weights/NAME.safetensors:0.8 -o merged.safetensors"
    if not facts["regularization"]:
        yield "   A person or a character instead of a style: loraloom demo --character"


_TEXTS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "checkpoint": _checkpoint,
    "dataset": _dataset,
    "regularization": _regularization,
    "training": _training,
    "trained": _trained,
    "weights": _weights,
    "weighed": _weighed,
    "merge": _merge,
    "merged": _merged,
    "end": _end,
}
