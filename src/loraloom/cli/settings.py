"""``loraloom settings``: what can be set, what it means, and a file to start from."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from loraloom.studio.forms import FormField

__all__ = ["settings"]


class What(StrEnum):
    """Which settings to show."""

    train = "train"
    generate = "generate"


def settings(
    what: Annotated[What, typer.Argument(help="train or generate")] = What.train,
    search: Annotated[
        str,
        typer.Option(
            "--search", "-s", help="Only settings whose name, here or elsewhere, or whose text holds these words."
        ),
    ] = "",
    toml: Annotated[
        bool, typer.Option("--toml", help="Print a settings file with every default, ready to edit.")
    ] = False,
) -> None:
    """Explain every setting, or print a settings file to edit."""

    from loraloom.errors import UnknownNameError
    from loraloom.generation.settings import GenerateSettings
    from loraloom.studio.forms import form_of
    from loraloom.studio.forms import search as find
    from loraloom.training.settings import TrainSettings

    cls = TrainSettings if what is What.train else GenerateSettings
    if toml:
        typer.echo(cls.template(), nl=False)
        return
    form = form_of(cls)
    fields = find(form, search) if search else list(form.fields)
    if not fields:
        raise UnknownNameError("setting", search, [field.name for field in form.fields])
    for field in fields:
        _print(field, with_choices=len(fields) == 1 or field.name == search)


def _print(field: FormField, *, with_choices: bool) -> None:
    """One setting, and inside a list of tables each of theirs."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    default = "required" if field.required else f"default {_shown(field.default)}"
    name = f"{field.group}[].{field.name}" if field.is_column else field.name
    console.print(Text.assemble((name, "bold"), f"  {field.values}, {default}"))
    console.print(Text(f"    {field.help}"))

    # The lines of all choices would bury the other settings.
    if with_choices and any(choice.summary for choice in field.choices):
        width = max(len(choice.name) for choice in field.choices)
        for choice in field.choices:
            console.print(Text(f"      {choice.name:<{width}}  {choice.summary}"))
    if field.kohya:
        console.print(Text(f"    in sd-scripts: {', '.join(field.kohya)}", style="dim"))
    if field.others:
        console.print(Text(f"    elsewhere: {', '.join(field.others)}", style="dim"))
    for column in field.columns:
        _print(column, with_choices=False)


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "empty"
    return str(value) if value != "" else "empty"
