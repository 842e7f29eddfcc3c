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

from loraloom.actions import Action, Sentence
from loraloom.adapters.block_weights import BlockWeights, parse_block_weights
from loraloom.adapters.strength import LoraStrength
from loraloom.control import Control, keep_going
from loraloom.errors import SettingsError
from loraloom.events import Listener, ignore
from loraloom.formats.files import output_error
from loraloom.formats.room import Need, require_room

if TYPE_CHECKING:
    from loraloom.weights.anatomy import BlockStrength as BlockStrength
    from loraloom.weights.checkpoint_merge import CheckpointMergeReport
    from loraloom.weights.combine import CombineReport
    from loraloom.weights.convert import ConvertReport
    from loraloom.weights.extract import ExtractReport
    from loraloom.weights.inspect import FileReport as FileReport
    from loraloom.weights.merge import LoraWeight, MergeReport
    from loraloom.weights.metadata import MetadataEdit
    from loraloom.weights.resize import ResizeReport

__all__ = [
    "convert_lora",
    "edit_metadata",
    "extract_lora",
    "inspect_file",
    "is_lora",
    "merge_checkpoints",
    "merge_files",
    "merge_loras",
    "parse_lora_weight",
    "read_checkpoint_weights",
    "read_entries",
    "read_lora_weights",
    "read_merge",
    "resize_lora",
    "weighted_lora",
    "write_sidecars",
]


def parse_lora_weight(text: str) -> LoraWeight:
    """``LORA``, ``LORA:0.8`` (both parts) or ``LORA:te:unet``; a path may hold colons itself (``C:\\loras\\x.pt``).

    Raises SettingsError for weights that are not numbers.
    """
    from loraloom.weights.merge import LoraWeight

    # Numbers are taken from the end only until what is left is a file, whose name may end like a number.
    path, numbers = text, list[float]()
    while len(numbers) < 2 and ":" in path and not _exists(path):
        rest, _, last = path.rpartition(":")
        try:
            numbers.insert(0, float(last))
        except ValueError:
            break
        path = rest

    # Where LORA is a file, "LORA:strong" is that file with a weight that is no number, not a file of the whole name.
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


def read_merge(
    first: str, loras: Sequence[str], block_weights: Sequence[str] = ()
) -> tuple[Path | None, list[LoraWeight]]:
    """Which of the two merges it is: the checkpoint that comes first, or None, and the LoRAs with their weights.

    A file that comes first and is a LoRA has a weight like the others, and block weights too. Errors as
    :func:`read_lora_weights`; FileError for a first file that cannot be read.
    """
    if is_lora(parse_lora_weight(first).path):
        return None, read_lora_weights([first, *loras], block_weights)
    return Path(first), read_lora_weights(loras, block_weights)


def merge_files(
    checkpoint: Path | None,
    loras: Sequence[LoraWeight],
    output: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    precision: str | None = None,
    to: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> MergeReport | CombineReport:
    """:func:`merge_loras` into the checkpoint; without one, add the LoRAs up into one LoRA.

    Raises SettingsError for ranks and names (``to``) of a LoRA when the result is a checkpoint.
    """
    if checkpoint is None:
        from loraloom.weights.combine import combine_loras

        _check_output(output)
        return combine_loras(
            loras,
            output,
            rank=rank,
            conv_rank=conv_rank,
            precision=precision,
            to=to,
            listener=listener,
            control=control,
        )
    if rank is not None or conv_rank is not None or to is not None:
        given = Action.CHOOSE_NAMES if to is not None else Action.CUT_RANK
        raise SettingsError([Sentence(given, " is for LoRAs merged into a LoRA")], f"{checkpoint} is a checkpoint")
    return merge_loras(checkpoint, loras, output, precision=precision, listener=listener, control=control)


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


def convert_lora(
    lora: Path,
    output: Path,
    *,
    to: str = "kohya",
    precision: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ConvertReport:
    """See :func:`loraloom.weights.convert.convert_lora`."""
    from loraloom.weights.convert import convert_lora as convert

    _check_output(output)
    return convert(lora, output, to=to, precision=precision, listener=listener, control=control)


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


def read_entries(texts: Sequence[str]) -> dict[str, str]:
    """Metadata as a person types it: ``KEY=VALUE``. Raises SettingsError for text without an equals sign."""
    entries = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            problem = Sentence(Action.SET_ENTRY.of(entry=repr(text)), " is not KEY=VALUE")
            raise SettingsError([problem], Sentence(Action.SET_ENTRY.of(entry="title='Inked lines'")))
        entries[key.strip()] = value
    return entries


def edit_metadata(
    path: Path,
    output: Path | None,
    changes: Mapping[str, str],
    *,
    in_place: bool = False,
    remove: Sequence[str] = (),
    preview: Path | None = None,
    control: Control = keep_going,
) -> MetadataEdit | None:
    """Change what a safetensors file says of itself, in ``output`` or ``in_place``; None where no change is given.

    Raises SettingsError where there is a change without one place for the result, or a place without a change.
    """
    from loraloom.weights.metadata import edit_metadata as edit

    if not (changes or remove or preview is not None):
        if output is not None or in_place:
            raise SettingsError(["nothing to change"], Sentence(Action.CHANGE_METADATA))
        return None
    if (output is None) == (not in_place):
        raise SettingsError(["where should the result go?"], Sentence(Action.CHOOSE_PLACE))
    return edit(path, output or path, changes, remove=remove, preview=preview, control=control)


def write_sidecars(path: Path, *, preview: Path | None = None) -> list[Path]:
    """Write the files beside a model that the web UI reads."""
    from loraloom.weights.metadata import write_sidecars as write

    return write(path, preview=preview)


def inspect_file(
    path: Path, *, hashes: bool = False, layers: bool = False, control: Control = keep_going
) -> FileReport:
    """Tell what a file is; ``hashes`` reads all of it for the hashes that other programs show, ``layers`` measures a
    LoRA's layers."""
    from loraloom.weights.inspect import inspect_file as inspect

    return inspect(path, hashes=hashes, layers=layers, control=control)
