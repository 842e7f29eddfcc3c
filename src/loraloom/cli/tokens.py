"""``loraloom tokens``: how long a prompt is, and where it is cut into chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loraloom.studio.tokens import TextTokens

__all__ = ["tokens"]


def tokens(
    model: Annotated[str, typer.Argument(help="Checkpoint, or a family: sd1, sd2, sdxl.")],
    prompt: Annotated[str, typer.Argument(help=r'The prompt, for example "a cat BREAK \[day:night:0.5]".')],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting of loraloom generate.")
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", "-n", help="The negative prompt.")] = None,
) -> None:
    """Count the tokens of a prompt and show its chunks of 75, for every text that it becomes from step to step.

    The first line has the longest of them. Counted by the code that paints.
    """
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.generation.settings import GenerateSettings
    from loraloom.settings import apply_overrides
    from loraloom.studio.tokens import count_tokens, longest

    given = {"prompt": prompt, **({} if negative is None else {"negative_prompt": negative})}
    settings = GenerateSettings.parse(apply_overrides(given, overrides or []), source="the command line")
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
        found = count_tokens(model, settings, listener=display)
    wanted = [text for text in found if not text.is_negative]
    most = longest(wanted)
    typer.echo(f"{most.used}/{most.room} tokens")
    parts = max(text.part for text in wanted)

    for text in found:
        # There is always a negative prompt; an empty one that nobody gave is not worth a line.
        if text.is_negative and negative is None and not settings.negative_prompt:
            continue
        typer.echo(f"{_label(text, parts, settings.steps)}: {text.used}/{text.room}")
        for number, said in enumerate(text.chunks, start=1):
            typer.echo(f"  {number}: {said}")


def _label(text: TextTokens, parts: int, steps: int) -> str:
    """Which of the prompt's texts it is, as far as there are others: a prompt of one text is just the prompt."""
    words = ["negative"] if text.is_negative else []
    words += [f"part {text.part} (weight {text.weight:g})"] if parts > 1 and not text.is_negative else []
    words += [f"steps {text.steps[0]} to {text.steps[1]}"] if text.steps != (1, steps) else []
    return ", ".join(words) or "prompt"
