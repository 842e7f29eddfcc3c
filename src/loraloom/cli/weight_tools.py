"""``loraloom convert``, ``merge-checkpoints``, ``extract``, ``resize`` and ``metadata``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraloom.cli.output import visible
from loraloom.cli.weights import CheckWithDiffusers, Names, Precision, Target, check_with_diffusers
from loraloom.errors import SettingsError

__all__ = ["convert", "extract", "merge_checkpoints", "metadata", "resize"]

Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]


class Dynamic(StrEnum):
    """How a rank is chosen from singular values."""

    sv_ratio = "sv_ratio"
    sv_fro = "sv_fro"
    sv_cumulative = "sv_cumulative"


def convert(
    lora: Annotated[Path, typer.Argument(help="A LoRA of any program: .safetensors, .pt, .ckpt, .bin.")],
    output: Output,
    to: Annotated[
        Target, typer.Option("--to", help="kohya: web UIs, ComfyUI, sd-scripts. diffusers: diffusers and PEFT.")
    ] = Target.kohya,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Type of the result. Unset: as in the file.")
    ] = None,
    read_back: CheckWithDiffusers = True,
) -> None:
    """Write a LoRA file under the names that another program reads; what it does stays the same."""
    from loraloom.studio.reports import report_lines
    from loraloom.studio.weights import convert_lora

    report = convert_lora(lora, output, to=to.value, precision=precision.value if precision else None)
    for line in report_lines(report):
        typer.echo(line)
    check_with_diffusers(report.path, wanted=read_back)


def merge_checkpoints(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="FIRST OTHER[:WEIGHT]...",
            help="The first gets what the other weights leave; 0.5 each if none is given.",
        ),
    ],
    output: Output,
    difference: Annotated[
        Path | None,
        typer.Option(
            "--difference", help="Add differences: FIRST + WEIGHT * (OTHER - this one); a weight is 1 if not given."
        ),
    ] = None,
    block_weights: Annotated[
        str | None, typer.Option("--block-weights", help="Multiplies the weights: a preset, or 26 numbers (SDXL 20).")
    ] = None,
    vae: Annotated[Path | None, typer.Option("--vae", help="Take the VAE of this file.")] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Type of the result. Unset: as in the first.")
    ] = None,
) -> None:
    """Merge checkpoints of one family: a weighted sum, or added differences."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.reports import report_lines
    from loraloom.studio.weights import merge_checkpoints as merge
    from loraloom.studio.weights import read_checkpoint_weights

    others = read_checkpoint_weights(checkpoints[1:], adds_difference=difference is not None)
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False), transient=True) as display:
        report = merge(
            Path(checkpoints[0]),
            others,
            output,
            difference=difference,
            block_weights=block_weights,
            vae=vae,
            precision=precision.value if precision else None,
            listener=display,
        )
    for line in report_lines(report):
        typer.echo(line)


def extract(
    base: Annotated[Path, typer.Argument(help="The checkpoint that the LoRA will be used with.")],
    tuned: Annotated[Path, typer.Argument(help="The checkpoint that it should turn into.")],
    output: Output,
    rank: Annotated[int, typer.Option("--rank", help="Rank of linear layers and 1x1 convolutions.")] = 32,
    conv_rank: Annotated[
        int | None, typer.Option("--conv-rank", help="Rank of 3x3 convolutions; 0 leaves them out. Unset: as --rank.")
    ] = None,
    to_residual: Annotated[
        float | None,
        typer.Option(
            "--to-residual", help="Give each layer the smallest rank that leaves out no more than this share."
        ),
    ] = None,
    min_diff: Annotated[
        float, typer.Option("--min-diff", help="Skip layers in which no value differs by more than this.")
    ] = 0.0,
    precision: Annotated[Precision, typer.Option("--precision", help="Type of the LoRA.")] = Precision.fp16,
    layers: Annotated[bool, typer.Option("--layers", help="Print rank and residual of every layer.")] = False,
    read_back: CheckWithDiffusers = True,
) -> None:
    """Make a LoRA of the difference between a tuned checkpoint and its base."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.reports import layer_lines, report_lines
    from loraloom.studio.weights import extract_lora

    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False), transient=True) as display:
        report = extract_lora(
            base,
            tuned,
            output,
            rank=rank,
            conv_rank=conv_rank,
            to_residual=to_residual,
            min_difference=min_diff,
            precision=precision.value,
            listener=display,
        )
    for line in [*(layer_lines(report) if layers else ()), *report_lines(report)]:
        typer.echo(line)
    check_with_diffusers(report.path, wanted=read_back)


def resize(
    lora: Annotated[Path, typer.Argument(help="The LoRA.")],
    output: Output,
    rank: Annotated[int, typer.Option("--rank", help="At most this rank.")],
    conv_rank: Annotated[
        int | None, typer.Option("--conv-rank", help="The same for 3x3 convolutions. Unset: as --rank.")
    ] = None,
    dynamic: Annotated[
        Dynamic | None, typer.Option("--dynamic", help="Choose ranks layer by layer (kohya's names and meaning).")
    ] = None,
    dynamic_param: Annotated[
        float | None,
        typer.Option(
            "--dynamic-param",
            help="Its number: such as 0.9 for sv_fro and sv_cumulative, 5 for sv_ratio.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Type of the result. Unset: as in the input.")
    ] = None,
    to: Names = None,
    layers: Annotated[bool, typer.Option("--layers", help="Print rank and kept energy of every layer.")] = False,
    read_back: CheckWithDiffusers = True,
) -> None:
    """Make a LoRA smaller: its best approximation of a lower rank."""
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.studio.reports import layer_lines, report_lines
    from loraloom.studio.weights import resize_lora

    if (dynamic is None) != (dynamic_param is None):
        raise SettingsError(["--dynamic and --dynamic-param belong together"], "--dynamic sv_fro --dynamic-param 0.9")
    way = (dynamic.value, dynamic_param) if dynamic is not None and dynamic_param is not None else None
    said = precision.value if precision else None
    names = to.value if to else None
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False), transient=True) as display:
        report = resize_lora(
            lora,
            output,
            rank=rank,
            conv_rank=conv_rank,
            dynamic=way,
            precision=said,
            to=names,
            listener=display,
        )
    for line in [*(layer_lines(report) if layers else ()), *report_lines(report)]:
        typer.echo(line)
    check_with_diffusers(report.path, wanted=read_back)


def metadata(
    file: Annotated[Path, typer.Argument(help="A .safetensors file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the file itself.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any key, or title, author, license, tags, weight. Repeatable."
        ),
    ] = None,
    trigger: Annotated[str | None, typer.Option("--trigger", help="Trigger words.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="What it is.")] = None,
    notes: Annotated[str | None, typer.Option("--notes", help="How to use it.")] = None,
    preview: Annotated[Path | None, typer.Option("--preview", help="A picture, kept as a small JPEG.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="KEY", help="Repeatable.")] = None,
    sidecar: Annotated[
        bool, typer.Option("--sidecar", help="Also write NAME.json and NAME.preview.png for the web UI.")
    ] = False,
) -> None:
    """Show or edit what a file says about itself; the tensors stay byte for byte as they are."""
    from loraloom.studio.reports import report_lines
    from loraloom.studio.weights import edit_metadata, inspect_file, read_entries, write_sidecars

    said = {"trigger": trigger, "description": description, "notes": notes}
    changes = read_entries(set_ or []) | {key: value for key, value in said.items() if value is not None}
    edit = edit_metadata(file, output, changes, in_place=in_place, remove=remove or [], preview=preview)

    # Nothing to change is a question what there is, unless only the files beside it are wanted.
    if edit is not None:
        for line in report_lines(edit):
            typer.echo(line)
    elif not sidecar:
        for key, value in sorted(inspect_file(file).metadata.items()):
            typer.echo(visible(f"{key} = {value if len(value) <= 2000 else value[:2000] + ' ...'}"))
    if sidecar:
        for path in write_sidecars(file if edit is None else edit.path, preview=preview):
            typer.echo(f"wrote {path}")
