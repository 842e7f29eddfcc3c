"""``loraloom doctor``: what this machine has, what is missing, what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.output import takes_all_letters, visible, visible_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from loraloom.studio.doctor.finding import Finding

__all__ = ["doctor"]

_COLOURS = {"good": "green", "note": "yellow", "problem": "bold red"}
_NARROW = 72
"""Columns; below that, a table of three columns breaks every word."""


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder you work in.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    tidy: Annotated[
        bool, typer.Option("--tidy", help="First remove what killed commands left half-written in the folder.")
    ] = False,
) -> None:
    """Look at this machine: what it has, what is missing, and what to do about it.

    The exit code is 1 where there is a problem. Nothing is sent anywhere.
    """
    import json

    from rich.console import Console

    from loraloom.errors import MissingFileError
    from loraloom.studio.doctor.checks import examine, worst
    from loraloom.studio.doctor.finding import Machine
    from loraloom.studio.doctor.work import tidy as remove_unfinished
    from loraloom.studio.results import to_record

    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder", "name the folder you work in")
    errors = Console(stderr=True, highlight=False, emoji=False)
    with Machine(folder.absolute()) as machine, errors.status("looking at this machine"):
        freed = remove_unfinished(machine) if tidy else 0
        findings = list(examine(machine))
    state = worst(findings)
    if as_json:
        record = {"state": state, "freed_bytes": freed, "findings": to_record(findings)}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=not takes_all_letters()))
    else:
        _show(findings, freed if tidy else None)
    raise typer.Exit(1 if state == "problem" else 0)


def _show(findings: Sequence[Finding], freed: int | None) -> None:
    from rich.console import Console

    from loraloom.plain_data import size_text

    console = Console(highlight=False, emoji=False)
    if console.width < _NARROW:
        _stack(console, findings)
    else:
        _table(console, findings)
    counts = {state: sum(finding.state == state for finding in findings) for state in ("problem", "note")}
    said = [f"{count} {state}{'' if count == 1 else 's'}" for state, count in counts.items() if count]
    if freed is not None:
        console.print(f"{size_text(freed)} of unfinished files were removed")
    console.print(", ".join(said) if said else "all is well")


def _table(console: Console, findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(max_width=18)
    table.add_column(overflow="fold")
    for finding in findings:
        state = Text(finding.state, _COLOURS[finding.state])
        table.add_row(state, Text(visible_line(finding.name)), Text("\n").join(_told(finding)))
    console.print(table)


def _stack(console: Console, findings: Sequence[Finding]) -> None:
    """One below the other, for a narrow terminal."""
    from rich.padding import Padding
    from rich.text import Text

    for finding in findings:
        console.print(Text.assemble((finding.state, _COLOURS[finding.state]), f"  {visible_line(finding.name)}"))
        for line in _told(finding):
            console.print(Padding(line, (0, 0, 0, 2)))


def _told(finding: Finding) -> list[Text]:
    """What was found and what to do, each a line; what to do stands out by an arrow and a colour."""
    from rich.text import Text

    lines = [Text(visible_line(finding.found))]
    if finding.advice:
        lines.append(Text(f"-> {visible(finding.advice)}", "cyan"))
    return lines
