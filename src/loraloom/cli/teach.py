"""``loraloom teach``: what it is, the pictures, a name; everything else is proposed, and said with its reason."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loraloom.studio.teach import Teaching

__all__ = ["teach"]


def teach(
    pictures: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of pictures to learn from.")],
    kind: Annotated[str, typer.Option("--kind", help="What it is: person, character, style or object.")] = "style",
    name: Annotated[str, typer.Option("--name", help="Name of the LoRA. Left out: the folder's.")] = "",
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="What to learn on. Left out: the small one of the package.")
    ] = None,
    trigger: Annotated[
        str, typer.Option("--trigger", help="The word that calls it. Left out: made from the name.")
    ] = "",
    class_word: Annotated[
        str, typer.Option("--class", help="What kind of thing it is: woman, robot, car. Left out: the kind's word.")
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.")] = Path("runs"),
    dry: Annotated[
        bool, typer.Option("--dry", help="Only say what would be done, and the command that does it.")
    ] = False,
) -> None:
    """Teach a person, a character, a style or an object: choose the settings, say why, and train.

    A person or a character gets regularization images first, painted by the checkpoint itself.
    """
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.cli.train import watched
    from loraloom.studio.class_images import make_class_images
    from loraloom.studio.runs.training import run_training
    from loraloom.studio.teach import base_checkpoint, propose

    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
        teaching = propose(
            kind,
            checkpoint,
            pictures,
            name,
            trigger=trigger,
            class_word=class_word,
            output=output,
            listener=display,
        )
    for line in describe(teaching):
        typer.echo(line)
    if dry:
        return
    if checkpoint is None:
        base_checkpoint()
    if (images := teaching.class_images) is not None:
        with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
            made = make_class_images(
                images.checkpoint,
                images.dataset,
                images.paint,
                count=images.count,
                trigger=images.trigger,
                listener=display,
            )
        typer.echo(f"{made.folder}: {made.found} pictures were there, {made.painted} painted")
    watched(lambda **doors: run_training(teaching.settings, **doors))


def describe(teaching: Teaching) -> list[str]:
    """The proposal in lines."""
    from loraloom.studio.forms import overrides_of, typed

    trigger, images = teaching.trigger, teaching.class_images
    lines = [
        f"{teaching.preset.title} from {teaching.images} pictures on {teaching.settings.checkpoint.name}",
        f"trigger word  {trigger.word}  ({' | '.join(trigger.pieces)}): {trigger.remark}",
    ]
    lines += [f"  {choice.setting} = {choice.value}: {choice.why}" for choice in teaching.choices]
    serious = [problem for problem in teaching.problems if problem.severity != "info"]
    for _, group in groupby(serious, key=lambda problem: (problem.severity, problem.kind)):
        first, *others = group
        more = f", and {len(others)} more like it" if others else ""
        lines.append(f"  {first.severity}: {first}{more}")
    if images is not None:
        lines.append(f'before it, {images.count} regularization images are painted: "{images.paint.prompt}"')
    return [*lines, f"the same by hand: {typed(('loraloom', 'train', *overrides_of(teaching.settings)))}"]
