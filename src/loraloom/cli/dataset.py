"""``loraloom dataset``: look at a dataset before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.output import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from loraloom.studio.datasets import DatasetReport, Problem

__all__ = ["app", "show_report"]

app = typer.Typer(help="Look at a dataset before training on it.", no_args_is_help=True)
_SHOWN = 8


@app.callback()
def _group() -> None:
    """Look at a dataset before training on it."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the pictures or concept folders.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Dataset settings: resolution=768 background=grey ..."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List every file of every problem.")] = False,
) -> None:
    """Show what is in a dataset, how it will be used, and every problem with what to do about it. Changes nothing.

    Ends with 0 if every picture and caption can be used (warnings may remain), with 1 if one cannot.
    """
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.data.settings import DatasetSettings
    from loraloom.settings import apply_overrides
    from loraloom.studio.datasets import check_dataset

    data = apply_overrides({"folder": str(folder)}, overrides or [])
    settings = DatasetSettings.parse(data, source="the command line")
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False), transient=True) as display:
        report = check_dataset(settings, listener=display)
    show_report(report, Console(emoji=False), everything=everything)
    if not report.clean:
        raise typer.Exit(1)


@app.command()
def captions(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the pictures or concept folders.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Dataset settings: captions.shuffle=true captions.trigger=sks"),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", "-n", min=1, max=1000, help="Showings of each picture.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The run's seed: it decides every draw.")] = 0,
    images: Annotated[int, typer.Option("--images", min=0, help="Only this many pictures. 0: all.")] = 0,
) -> None:
    """Print the captions that the model would get for each picture the first few times it is shown. Changes nothing.

    The same seed and settings give the same captions in training. Tag warm-up is shown as in a run of 10 epochs.
    """
    from rich.console import Console
    from rich.text import Text

    from loraloom.data.settings import DatasetSettings
    from loraloom.settings import apply_overrides
    from loraloom.studio.datasets import preview_captions, readable

    data = apply_overrides({"folder": str(folder)}, overrides or [])
    settings = DatasetSettings.parse(data, source="the command line")
    previews = preview_captions(settings, draws=draws, seed=seed)
    console = Console(highlight=False, emoji=False)
    console.print(Text("Each time: " + ", ".join(previews.operations), "dim"), soft_wrap=True)
    for picture in previews.pictures[: images or None]:
        console.print(Text(readable(picture.name), "bold"), soft_wrap=True)
        source = "no caption file" if picture.source is None else readable(picture.source.name)
        for line in picture.lines:
            console.print(Text.assemble((f"  {source}: ", "dim"), readable(line)), soft_wrap=True)
        for epoch, caption, tokens in picture.told:
            told = readable(caption) if caption else "(nothing)"
            note = (f"  epoch {epoch}, {tokens} tokens: ", "cyan")
            console.print(Text.assemble(note, told), soft_wrap=True)
    for notice in previews.notices:
        console.print(Text(readable(notice), "yellow"), soft_wrap=True)


def show_report(report: DatasetReport, console: Console, *, everything: bool = False) -> None:
    """Print a report: concepts, buckets, captions, then the problems, worst first."""
    from loraloom.studio.datasets import readable

    console.print(f"Dataset {readable(report.folder)}", style="bold", markup=False, highlight=False)
    _show_concepts(report, console)
    _show_buckets(report, console)
    if report.images:
        console.print(
            f"Longest caption: {report.longest_tokens} tokens in {report.place(report.longest_caption)};"
            f" max token length {report.max_token_length}",
            markup=False,
            highlight=False,
        )
    if report.masked:
        console.print(f"Pictures with a mask: {report.masked}", markup=False, highlight=False)
    if report.regularization_folder is not None:
        place = report.place(report.regularization_folder)
        console.print(
            f"Regularization images: {report.regularization_images} in {place}", markup=False, highlight=False
        )
    _show_problems(report, console, everything=everything)


def _show_concepts(report: DatasetReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from loraloom.studio.datasets import readable

    table = Table("concept", title="Concepts", title_justify="left")
    for heading in ("images", "captions", "repeats", "shown per epoch", "share"):
        table.add_column(heading, justify="right")
    for row in report.concepts:
        label = readable(row.concept.label) + (" (regularization)" if row.concept.is_regularization else "")
        share = "-" if row.share is None else f"{row.share:.1%}"
        shown = "-" if row.concept.is_regularization else str(row.shown)
        table.add_row(Text(label), str(row.images), str(row.captions), str(row.concept.repeats), shown, share)
    table.add_section()
    table.add_row("training, in all", str(report.images), "", "", str(report.shown), "100.0%" if report.shown else "-")
    console.print(table)


def _show_buckets(report: DatasetReport, console: Console) -> None:
    from rich.table import Table

    table = Table(title="Buckets", title_justify="left")
    for heading in ("width x height", "images", "with repeats", "area cropped"):
        table.add_column(heading, justify="right")
    for use in report.buckets:
        table.add_row(f"{use.size[0]} x {use.size[1]}", str(use.images), str(use.shown), f"{use.cropped:.1%}")
    table.add_section()
    images, shown = sum(use.images for use in report.buckets), sum(use.shown for use in report.buckets)
    table.add_row("in all", str(images), str(shown), f"{report.cropped:.1%}")
    console.print(table)


def _show_problems(report: DatasetReport, console: Console, *, everything: bool) -> None:
    from rich.text import Text

    styles = {"error": "bold red", "warning": "yellow", "info": "cyan"}
    for group in report.groups:
        title = Text(f"{group.severity}: ", styles[group.severity]) + Text(f"{group.kind} ({len(group.problems)})")
        # A hint that is the same for all of them is printed once, else after each.
        if group.hint is not None:
            title += Text(f": {visible(group.hint)}", "dim")
        console.print(title, soft_wrap=True, highlight=False)
        shown = group.problems if everything else group.problems[:_SHOWN]
        for problem in shown:
            console.print(_line(problem, report, hint=group.hint is None), soft_wrap=True, highlight=False)
        if more := len(group.problems) - len(shown):
            console.print(f"  ... and {more} more (--all lists them)", highlight=False)
    errors, warnings = report.count("error"), report.count("warning")
    summary = ", ".join(
        f"{count} {name}{'s' * (count != 1)}" for count, name in ((errors, "error"), (warnings, "warning"))
    )
    console.print(f"{summary}, {report.count('info')} remarks", style="bold", highlight=False)


def _line(problem: Problem, report: DatasetReport, *, hint: bool) -> Text:
    from rich.text import Text

    from loraloom.studio.datasets import readable

    line = Text(f"  {report.place(problem.path)} {readable(problem.problem)}")
    return line + Text(f" ({visible(problem.hint)})", "dim") if hint and problem.hint else line
