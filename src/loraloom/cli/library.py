"""``loraloom library``: an index of checkpoints and LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraloom.cli.output import visible

__all__ = ["app"]

app = typer.Typer(help="An index of the checkpoints and LoRAs on this machine.", no_args_is_help=True)
Index = Annotated[Path | None, typer.Option("--index", help="The index file. Unset: in your data folder.")]


@app.command()
def scan(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders to scan, with their subfolders.")],
    hashes: Annotated[bool, typer.Option("--hash", help="Also the SHA-256 of every file: reads all of it.")] = False,
    index: Index = None,
) -> None:
    """Bring the index up to date: only files that are new or changed are read."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.library import scan as scan_folders

    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False), transient=True) as display:
        report = scan_folders(folders, hashes=hashes, index=index, listener=display)
    for before, after in report.moved:
        typer.echo(visible(f"moved: {before} -> {after}"))
    for path, reason in report.broken:
        typer.echo(visible(f"cannot be used: {reason if path in reason else f'{path}: {reason}'}"))
    typer.echo(
        f"{report.files} files: {report.read} read, {report.added} new, {report.changed} changed, "
        f"{len(report.moved)} moved, {report.removed} gone, {len(report.broken)} broken"
    )


@app.command()
def search(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]...", help="Words to look for; all of them must occur.")
    ] = None,
    family: Annotated[str | None, typer.Option("--family", help="sd1, sd2 or sdxl.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="checkpoint, lora, other, broken, or a kind of adapter: loha.")
    ] = None,
    index: Index = None,
) -> None:
    """Find files by path, title, trigger words, tags, description or hash."""
    from loraloom.studio.library import search as search_index

    found = search_index(words or [], family=family, kind=kind, index=index)
    for entry in found:
        typer.echo(visible(f"{entry.path}  [{entry.summary}]"))
    typer.echo(f"{len(found)} found")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A path, a file name, or the beginning of a hash.")], index: Index = None
) -> None:
    """Print what the index knows of a file."""
    from loraloom.studio.library import show as show_file

    for entry in show_file(name, index=index):
        typer.echo(visible(entry.path))
        for fact, value in entry.facts.items():
            typer.echo(visible(f"  {fact}: {value}"))


@app.command()
def forget(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, or folders with everything in them.")],
    index: Index = None,
) -> None:
    """Take files out of the index; the files themselves stay."""
    from loraloom.studio.library import forget as forget_files

    typer.echo(f"{forget_files(paths, index=index)} files forgotten")
