"""``loraloom import``: other programs' recipes, and the one that a LoRA file carries, as a settings file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.output import visible_line

if TYPE_CHECKING:
    from rich.console import Console

    from loraloom.studio.recipes import Recipe

__all__ = ["import_recipe", "show_account"]


def import_recipe(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A recipe of another program (docs/coming-from.md lists them), or a LoRA file."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's: checkpoint=model.safetensors"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="RUN.toml", help="Write the settings there.")
    ] = None,
) -> None:
    """Turn another program's recipe into a settings file, and say what became of every key of it.

    Without -o the settings are printed to stdout, and the account of the keys to stderr. A LoRA file is a recipe too,
    by its metadata.
    """
    from rich.console import Console

    from loraloom.actions import Sentence
    from loraloom.errors import SettingsError
    from loraloom.studio.recipes import check_recipe, read_recipe, write_settings

    recipe = read_recipe(file)
    given = overrides or []
    try:
        missing = check_recipe(recipe, given)
    except SettingsError:
        show_account(recipe, Console(stderr=True, highlight=False, emoji=False))
        raise
    if output is None:
        typer.echo(recipe.to_toml(given), nl=False)
    else:
        write_settings(recipe, output, given)
    console = Console(stderr=output is None, highlight=False, emoji=False)
    show_account(recipe, console)
    for path in missing:
        known = recipe.why_missing(path)
        more = visible_line(Sentence(" (", known, ")")) if known else ""
        console.print(f"still needed: {path}{more}", style="bold", markup=False, soft_wrap=True)
    if output is not None:
        console.print(f"wrote {output}", markup=False, soft_wrap=True)


def show_account(recipe: Recipe, console: Console) -> None:
    """Print what a recipe became: keys that were taken over, those that changed in meaning, those left out."""
    from rich.text import Text

    from loraloom.plain_data import shown

    def line(style: str, *parts: str) -> None:
        first, rest = visible_line(parts[0]), "".join(map(visible_line, parts[1:]))
        console.print(Text("  ") + Text(first, style) + Text(rest), soft_wrap=True)

    if recipe.mapped:
        console.print(f"taken over ({len(recipe.mapped)})", style="bold green")
        for entry in recipe.mapped:
            value = entry.value if isinstance(entry.value, str) else shown(entry.value)
            line("", entry.key, f" -> {entry.path} = {value}")
    if recipe.changed:
        console.print(f"not quite the same here ({len(recipe.changed)})", style="bold yellow")
        for key, note in recipe.changed:
            line("yellow", key, ": ", note)
    if recipe.unmapped:
        console.print(f"not carried over ({len(recipe.unmapped)})", style="bold cyan")
        for key, reason in recipe.unmapped:
            line("red" if key in recipe.unknown else "cyan", key, ": ", reason)
    if recipe.idle:
        names = visible_line(", ".join(recipe.idle))
        console.print(Text(f"empty, off or without effect ({len(recipe.idle)}): {names}", "dim"), soft_wrap=True)
