"""``loraloom merge`` and ``loraloom inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.failures import show_failure
from loraloom.cli.output import takes_all_letters, visible
from loraloom.errors import LoraloomError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from loraloom.studio.weights import BlockStrength, FileReport

__all__ = [
    "CheckWithDiffusers",
    "Names",
    "Precision",
    "Target",
    "check_with_diffusers",
    "inspect",
    "merge",
]


class Target(StrEnum):
    """Whose names a LoRA gets."""

    kohya = "kohya"
    diffusers = "diffusers"


Names = Annotated[
    Target | None,
    typer.Option("--to", help="Whose names the LoRA gets. Unset: diffusers' if the input has them, else kohya's."),
]

CheckWithDiffusers = Annotated[
    bool,
    typer.Option(
        "--read-back/--no-read-back",
        help="If diffusers is installed, let it read the LoRA back and check every tensor.",
    ),
]


def check_with_diffusers(path: Path, *, wanted: bool) -> None:
    """Say whether an independent reader finds a layer for every tensor of a LoRA that was written."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.read_back import read_back_now

    if wanted:
        with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
            read_back_now([path], display)


class Precision(StrEnum):
    """Type of the merged checkpoint's tensors."""

    fp16 = "fp16"
    bf16 = "bf16"
    float = "float"


def merge(
    first: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|LORA[:WEIGHT]",
            help="The checkpoint: .safetensors, .ckpt or a Diffusers folder. Or the first of several LoRAs.",
        ),
    ],
    loras: Annotated[
        list[str],
        typer.Argument(
            metavar="LORA[:WEIGHT]...", help="LoRA files: style.safetensors:0.8, or LORA:text_encoder:unet."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="OUT.safetensors or OUT.ckpt.")],
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Type of the result. Unset: as in the input.")
    ] = None,
    block_weights: Annotated[
        list[str] | None,
        typer.Option(
            "--block-weights",
            help="OUTD, INALL ... or 12, 17, 20 or 26 numbers, or BASE=1,MID=0.5: for all LoRAs, or once for each.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="LoRAs into a LoRA: reduce the sum to this rank. Unset: exact, the ranks add up."),
    ] = None,
    conv_rank: Annotated[int | None, typer.Option("--conv-rank", help="The same for 3x3 convolutions.")] = None,
    to: Names = None,
    read_back: CheckWithDiffusers = True,
) -> None:
    """Merge LoRAs into a checkpoint, or LoRAs into one LoRA. What no LoRA changes stays as it is, bit for bit."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.reports import report_lines
    from loraloom.studio.weights import merge_files, read_merge

    checkpoint, weighted = read_merge(first, loras, block_weights or [])
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False), transient=True) as display:
        report = merge_files(
            checkpoint,
            weighted,
            output,
            rank=rank,
            conv_rank=conv_rank,
            precision=precision.value if precision else None,
            to=to.value if to else None,
            listener=display,
        )
    for line in report_lines(report):
        typer.echo(line)
    if checkpoint is None:
        check_with_diffusers(report.path, wanted=read_back)


def inspect(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Checkpoints, LoRAs, Diffusers folders or images.")
    ],
    metadata: Annotated[bool, typer.Option("--metadata", "-m", help="Print all of the file's metadata.")] = False,
    hashes: Annotated[
        bool, typer.Option("--hash", help="Read the whole file: its hashes, and whether they agree.")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Read all of a LoRA: how strong each block is, which layers do nothing or are broken."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list with everything, for other programs.")] = False,
) -> None:
    """Show what a checkpoint, a LoRA or an image is."""
    import json

    from rich.console import Console

    from loraloom.studio.results import to_record
    from loraloom.studio.weights import inspect_file

    console = Console(highlight=False, emoji=False)
    failed = False
    reports = []
    for path in files:
        try:
            report = inspect_file(path, hashes=hashes, layers=layers)
        except LoraloomError as error:
            # Of several files, one that cannot be read does not keep the others from being shown.
            if len(files) == 1:
                raise
            show_failure(error)
            failed = True
            continue
        if as_json:
            reports.append({**to_record(report), "path": str(path)})
            continue
        _print_report(report, path, console, metadata=metadata)
    if as_json:
        typer.echo(json.dumps(reports, ensure_ascii=not takes_all_letters(), indent=1))
    if failed:
        raise typer.Exit(1)


def _print_report(report: FileReport, path: Path, console: Console, *, metadata: bool) -> None:
    from rich.text import Text

    console.print(Text.assemble((visible(str(path)), "bold"), f": {visible(report.title)}"), soft_wrap=True)
    width = max((len(label) for label in report.facts), default=0)
    for label, value in report.facts.items():
        console.print(Text(f"  {visible(label):<{width}}  {visible(value)}"), soft_wrap=True)
    if report.anatomy is not None:
        console.print(_block_table(report.anatomy.blocks))
    if metadata:
        for key, value in sorted(report.metadata.items()):
            console.print(Text(visible(f"  {key} = {value}"), style="dim"), soft_wrap=True)
    elif report.metadata:
        console.print(Text(f"  metadata: {len(report.metadata)} entries (--metadata prints them)", style="dim"))


def _block_table(blocks: Sequence[BlockStrength]) -> Table:
    """Blocks and how strong the LoRA is there."""
    from rich.table import Table

    table = Table("block", "layers", "norm", "share", "mean change", "effective rank", box=None, padding=(0, 2))
    for block in blocks:
        rank = "" if block.effective_rank is None else f"{block.effective_rank:.1f}"
        numbers = str(block.layers), f"{block.norm:.3g}", f"{block.share:.1%}", f"{block.rms:.2e}"
        table.add_row(block.block, *numbers, rank)
    return table
