"""``loraloom settings``: what can be set, what it means, and a file to start from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

__all__ = ["settings"]


class What(StrEnum):
    """Which settings to show."""

    train = "train"
    generate = "generate"


def settings(
    what: Annotated[What, typer.Argument(help="train or generate")] = What.train,
    search: Annotated[str, typer.Option("--search", "-s", help="Only settings whose name or text contains this.")] = "",
    toml: Annotated[
        bool, typer.Option("--toml", help="Print a settings file with every default, ready to edit.")
    ] = False,
) -> None:
    """Explain every setting, or print a settings file to edit."""
    from rich.console import Console
    from rich.text import Text

    from loraloom.generation.settings import GenerateSettings
    from loraloom.settings import find_settings
    from loraloom.training.settings import TrainSettings

    cls = TrainSettings if what is What.train else GenerateSettings
    if toml:
        typer.echo(cls.template(), nl=False)
        return
    rows = find_settings(cls, search)
    console = Console(highlight=False, emoji=False)
    for row in rows:
        default = "required" if row.required else f"default {_shown(row.default)}"
        console.print(Text.assemble((row.path, "bold"), f"  {row.type}, {default}"))
        console.print(Text(f"    {row.doc}"))
        if len(rows) == 1 and any(row.choices.values()):
            width = max(map(len, row.choices))
            for name, summary in row.choices.items():
                console.print(Text(f"      {name:<{width}}  {summary}"))
        if row.kohya:
            console.print(Text(f"    in sd-scripts: {', '.join(row.kohya)}", style="dim"))


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "empty"
