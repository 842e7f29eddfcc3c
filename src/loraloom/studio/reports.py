"""What was done to model files, in sentences for people: the same at every door."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraloom.formats.adapter_writer import WrittenLora
from loraloom.weights.checkpoint_merge import CheckpointMergeReport
from loraloom.weights.combine import CombineReport
from loraloom.weights.convert import ConvertReport
from loraloom.weights.extract import ExtractReport
from loraloom.weights.merge import MergeReport
from loraloom.weights.metadata import MetadataEdit
from loraloom.weights.resize import ResizeReport

__all__ = ["Report", "layer_lines", "report_lines"]

Report = (
    MergeReport | CombineReport | CheckpointMergeReport | ConvertReport | ExtractReport | ResizeReport | MetadataEdit
)


def report_lines(report: Report) -> list[str]:
    """What was written and what came of it, in lines."""
    match report:
        case MergeReport():
            loras = [f"{lora.path}: {lora.applied} of {lora.layers} layers applied" for lora in report.loras]
            return [*loras, f"wrote {report.path}: {report.changed} of {report.tensors} tensors changed"]
        case CombineReport():
            return list(_combined(report))
        case CheckpointMergeReport():
            return [f"wrote {report.path}: {report.merged} of {report.tensors} tensors merged"]
        case ConvertReport():
            return list(_converted(report))
        case ExtractReport():
            return list(_extracted(report))
        case ResizeReport():
            return list(_resized(report))
        case MetadataEdit():
            return [f"wrote {report.path}: {len(report.changed)} changed, {len(report.removed)} removed"]


def layer_lines(report: ExtractReport | ResizeReport) -> list[str]:
    """Every layer's rank, and how near it is to what it stands for."""
    match report:
        case ExtractReport():
            return [f"{layer.name}: rank {layer.rank}, residual {layer.residual:.2%}" for layer in report.layers]
        case ResizeReport():
            return [
                f"{layer.name}: rank {layer.old_rank} to {layer.rank}, {layer.kept:.2%} of the energy"
                for layer in report.layers
            ]


def _combined(report: CombineReport) -> Iterator[str]:
    ranks = sorted(set(report.ranks.values()))
    told = f", ranks {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f", rank {ranks[0]}" if ranks else ""
    left = "" if report.limit is None else f"; left out: {report.residual:.2%} of the norm"
    yield from _written(report.written, f"{report.written.layers} layers{told}{left}", report.words)


def _converted(report: ConvertReport) -> Iterator[str]:
    yield f"read as: {report.source}, for {report.family}"
    if report.beside:
        yield f"read with it: {', '.join(path.name for path in report.beside)}"
    yield from _written(report.written, f"{report.layers} layers", report.words)


def _extracted(report: ExtractReport) -> Iterator[str]:
    worst = max(report.layers, key=lambda layer: layer.residual)
    ranks = sorted(layer.rank for layer in report.layers)
    yield f"residual (relative norm): {report.residual:.2%}, at most {worst.residual:.2%} in {worst.name}"
    yield f"wrote {report.path}: {len(ranks)} layers, ranks {ranks[0]} to {ranks[-1]}; {report.unchanged} unchanged"


def _resized(report: ResizeReport) -> Iterator[str]:
    worst = min(report.layers, key=lambda layer: layer.kept)
    ranks = sorted(layer.rank for layer in report.layers)
    yield f"kept energy: {1 - report.residual**2:.2%}, at least {worst.kept:.2%} in {worst.name}"
    whole = f", {report.whole} without a rank unchanged" if report.whole else ""
    what = f"{len(ranks)} layers, ranks {ranks[0]} to {ranks[-1]}{whole}"
    yield from _written(report.written, what, report.words)


def _written(written: WrittenLora, what: str, words: Sequence[str]) -> Iterator[str]:
    """``what`` the file holds, in whose names, what was padded and where words are."""
    yield f"wrote {written.path}: {what}, in the names of {written.dialect.title}"
    if written.padded is not None:
        low, high = written.padded
        why = "diffusers takes one rank for the alpha of all layers"
        yield f"ranks {low} to {high} are padded with zeros to one for each part: {why}"
    if words:
        files = ", ".join(map(str, written.embeddings))
        yield f"textual-inversion embeddings: {', '.join(words)}, in {files}"
