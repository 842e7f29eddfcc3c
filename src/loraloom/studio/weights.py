"""Merge, extract, resize, edit and inspect model files, as a person asks for them."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.adapters.block_weights import BlockWeights, parse_block_weights
from loraloom.adapters.strength import LoraStrength
from loraloom.control import Control, keep_going
from loraloom.errors import SettingsError
from loraloom.events import Listener, ignore
from loraloom.formats.files import output_error
from loraloom.formats.room import Need, require_room

if TYPE_CHECKING:
    from loraloom.formats.adapter_writer import WrittenLora
    from loraloom.weights.anatomy import BlockStrength as BlockStrength
    from loraloom.weights.checkpoint_merge import CheckpointMergeReport
    from loraloom.weights.combine import CombineReport
    from loraloom.weights.convert import ConvertReport
    from loraloom.weights.extract import ExtractReport
    from loraloom.weights.inspect import FileReport
    from loraloom.weights.merge import LoraWeight, MergeReport
    from loraloom.weights.metadata import MetadataEdit
    from loraloom.weights.resize import ResizeReport

__all__ = [
    "combine_loras",
    "convert_lora",
    "edit_metadata",
    "extract_lora",
    "inspect_file",
    "is_lora",
    "merge_checkpoints",
    "merge_loras",
    "parse_lora_weight",
    "read_checkpoint_weights",
    "read_lora_weights",
    "resize_lora",
    "weighted_lora",
    "write_sidecars",
    "written_text",
]


def parse_lora_weight(text: str) -> LoraWeight:
    """``LORA``, ``LORA:0.8`` (both parts) or ``LORA:te:unet``; a path may hold colons itself (``C:\\loras\\x.pt``).

    Raises SettingsError for weights that are not numbers.
    """
    from loraloom.weights.merge import LoraWeight

    path, numbers = text, list[float]()
    while len(numbers) < 2 and ":" in path and not _exists(path):
        rest, _, last = path.rpartition(":")
        try:
            numbers.insert(0, float(last))
        except ValueError:
            break
        path = rest
    before, _, last = path.rpartition(":")
    is_typing_error = bool(before) and not _exists(path) and _exists(before)
    if not path or is_typing_error or not all(math.isfinite(number) for number in numbers):
        what = f": {last!r} is not a number" if is_typing_error and not numbers else ""
        raise SettingsError(
            [f"{text!r} is not LORA:weight or LORA:text_encoder:unet{what}"], "for example style.safetensors:0.8"
        )
    text_encoder, unet = (numbers or [1.0])[0], (numbers or [1.0])[-1]
    return LoraWeight(Path(path), LoraStrength(unet, text_encoder))


def _exists(path: str) -> bool:
    with suppress(OSError, ValueError):  # a name that the file system cannot hold
        return Path(path).exists()
    return False


def merge_loras(
    checkpoint: Path,
    loras: Sequence[LoraWeight],
    output: Path,
    *,
    precision: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> MergeReport:
    """Merge the LoRAs (:func:`weighted_lora`, or :func:`read_lora_weights` from text) into a checkpoint."""
    from loraloom.weights.merge import merge

    _check_output(output)
    return merge(checkpoint, loras, output, precision=precision, listener=listener, control=control)


def combine_loras(
    loras: Sequence[LoraWeight],
    output: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    precision: str | None = None,
    to: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> CombineReport:
    """Add LoRAs (:func:`weighted_lora`, or :func:`read_lora_weights` from text) up into one LoRA."""
    from loraloom.weights.combine import combine_loras as combine

    _check_output(output)
    return combine(
        loras,
        output,
        rank=rank,
        conv_rank=conv_rank,
        precision=precision,
        to=to,
        listener=listener,
        control=control,
    )


def _check_output(output: Path, nbytes: int = 0, what: str = "the result") -> None:
    """Raise OutputError before the work where its result could not be written."""
    if not output.parent.is_dir():
        raise output_error(output, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    require_room([Need(output.parent, nbytes, what)])


def _extracted_bytes(base: Path, rank: int, conv_rank: int | None, precision: str) -> int:
    """What a LoRA of these ranks for all of a checkpoint's layers takes at most."""
    from loraloom.models.checkpoint import open_checkpoint

    ranks = {2: rank, 4: rank if conv_rank is None else max(rank, conv_rank)}
    shapes = [info.shape for info in open_checkpoint(base).infos.values() if len(info.shape) in ranks]
    numbers = sum(
        min(ranks[len(shape)], shape[0], math.prod(shape[1:])) * (shape[0] + math.prod(shape[1:])) for shape in shapes
    )
    return numbers * (4 if precision == "float" else 2)


def convert_lora(lora: Path, output: Path, *, to: str = "kohya", precision: str | None = None) -> ConvertReport:
    """See :func:`loraloom.weights.convert.convert_lora`."""
    from loraloom.weights.convert import convert_lora as convert

    _check_output(output)
    return convert(lora, output, to=to, precision=precision)


def is_lora(path: Path) -> bool:
    """Whether a file is a LoRA, rather than a checkpoint or something else."""
    from loraloom.formats.lora_keys import lora_keys
    from loraloom.formats.tensors import open_tensors

    if path.is_dir():
        return False
    with open_tensors(path) as tensors:
        return lora_keys({key: tensors.info(key) for key in tensors}, tensors.metadata) is not None


def weighted_lora(
    path: Path, *, unet: float = 1.0, text_encoder: float = 1.0, block_weights: str | None = None
) -> LoraWeight:
    """A LoRA file and how strongly it counts in a merge.

    ``block_weights``: a preset, numbers, or ``BASE=1,MID=0.5``; SettingsError for others.
    """
    from loraloom.weights.merge import LoraWeight

    blocks = None if block_weights is None else parse_block_weights(block_weights)
    return LoraWeight(path, LoraStrength(unet, text_encoder, blocks=blocks))


def read_lora_weights(loras: Sequence[str], block_weights: Sequence[str] = ()) -> list[LoraWeight]:
    """LoRAs as :func:`parse_lora_weight` reads them, with their block weights: one for all, or one for each.

    Raises SettingsError for text that is none of these.
    """
    if len(block_weights) not in (0, 1, len(loras)):
        raise SettingsError(
            [f"{len(block_weights)} block weights for {len(loras)} LoRAs"], "give one for all, or one for each in order"
        )
    blocks: list[BlockWeights | None] = [parse_block_weights(text) for text in block_weights]
    blocks = blocks if len(blocks) == len(loras) else (blocks or [None]) * len(loras)
    read = [parse_lora_weight(text) for text in loras]
    strengths = [replace(lora.strength, blocks=each) for lora, each in zip(read, blocks, strict=True)]
    return [replace(lora, strength=strength) for lora, strength in zip(read, strengths, strict=True)]


def read_checkpoint_weights(checkpoints: Sequence[str], *, adds_difference: bool) -> list[tuple[Path, float]]:
    """``CHECKPOINT:weight``; a weight that is not given is 0.5, or 1 where differences are added."""
    found = []
    for text in checkpoints:
        read = parse_lora_weight(text)
        is_given = str(read.path) != text
        found.append((read.path, read.strength.unet if is_given or adds_difference else 0.5))
    return found


def merge_checkpoints(
    first: Path,
    others: Sequence[tuple[Path, float]],
    output: Path,
    *,
    difference: Path | None = None,
    block_weights: str | None = None,
    vae: Path | None = None,
    precision: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> CheckpointMergeReport:
    """Merge checkpoints: the first gets what the weights of the others leave."""
    from loraloom.weights.checkpoint_merge import CheckpointWeight
    from loraloom.weights.checkpoint_merge import merge_checkpoints as merge

    blocks = parse_block_weights(block_weights) if block_weights is not None else None
    _check_output(output)
    return merge(
        first,
        [CheckpointWeight(path, weight) for path, weight in others],
        output,
        difference=difference,
        blocks=blocks,
        vae=vae,
        precision=precision,
        listener=listener,
        control=control,
    )


def extract_lora(
    base: Path,
    tuned: Path,
    output: Path,
    *,
    rank: int,
    conv_rank: int | None,
    to_residual: float | None,
    min_difference: float,
    precision: str,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ExtractReport:
    """Make a LoRA of what distinguishes two checkpoints."""
    from loraloom.weights.extract import extract_lora as extract

    _check_output(output, _extracted_bytes(base, rank, conv_rank, precision), "the LoRA")
    return extract(
        base,
        tuned,
        output,
        rank=rank,
        conv_rank=conv_rank,
        to_residual=to_residual,
        min_difference=min_difference,
        precision=precision,
        listener=listener,
        control=control,
    )


def resize_lora(
    lora: Path,
    output: Path,
    *,
    rank: int,
    conv_rank: int | None = None,
    dynamic: tuple[str, float] | None = None,
    precision: str | None = None,
    to: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ResizeReport:
    """Make a LoRA smaller; ``dynamic``: a way to choose ranks layer by layer, and its number."""
    from loraloom.weights.low_rank import Criterion
    from loraloom.weights.resize import resize_lora as resize

    criterion = Criterion(*dynamic) if dynamic is not None else None
    _check_output(output)
    return resize(
        lora,
        output,
        rank=rank,
        conv_rank=conv_rank,
        criterion=criterion,
        precision=precision,
        to=to,
        listener=listener,
        control=control,
    )


def edit_metadata(
    path: Path,
    output: Path,
    changes: Mapping[str, str],
    *,
    remove: Sequence[str] = (),
    preview: Path | None = None,
) -> MetadataEdit:
    """Change what a safetensors file says of itself."""
    from loraloom.weights.metadata import edit_metadata as edit

    return edit(path, output, changes, remove=remove, preview=preview)


def write_sidecars(path: Path, *, preview: Path | None = None) -> list[Path]:
    """Write the files beside a model that the web UI reads."""
    from loraloom.weights.metadata import write_sidecars as write

    return write(path, preview=preview)


def inspect_file(path: Path, *, hashes: bool = False, layers: bool = False) -> FileReport:
    """Tell what a file is; ``hashes`` reads all of it for the hashes that other programs show, ``layers`` measures a
    LoRA's layers."""
    from loraloom.weights.inspect import inspect_file as inspect

    return inspect(path, hashes=hashes, layers=layers)


def written_text(written: WrittenLora, what: str, words: Sequence[str] = ()) -> str:
    """What was written, for people: ``what`` the file holds, in whose names, what was padded and where words are."""
    lines = [f"wrote {written.path}: {what}, in the names of {written.dialect.title}"]
    if written.padded is not None:
        low, high = written.padded
        why = "diffusers takes one rank for the alpha of all layers"
        lines.append(f"ranks {low} to {high} are padded with zeros to one for each part: {why}")
    if words:
        files = ", ".join(map(str, written.embeddings))
        lines.append(f"words of textual inversion: {', '.join(words)}, in {files}")
    return "\n".join(lines)
