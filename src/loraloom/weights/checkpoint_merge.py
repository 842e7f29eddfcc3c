"""Checkpoints merged with one another: weighted sums and added differences, streamed tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.adapters.block_weights import BlockWeights
from loraloom.control import Control, keep_going
from loraloom.errors import CheckpointError, OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.files import sha256_of
from loraloom.formats.tensors import TensorInfo, TensorSource, is_finite, write_tensors
from loraloom.hardware import keep_freed_memory
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.names import is_extra
from loraloom.models.parts import check_is_weight, not_finite
from loraloom.models.prediction import prediction_metadata, read_signs
from loraloom.models.saving import saved_dtype
from loraloom.models.vae_file import vae_tensors
from loraloom.weights.merge import PRECISIONS, file_name, is_same_or_inside, kept_broken

__all__ = ["RECIPE_KEY", "CheckpointMergeReport", "CheckpointWeight", "merge_checkpoints"]

RECIPE_KEY = "loraloom.checkpoint_merge"
"""Metadata of a merged checkpoint: JSON with the way, files, SHA-256, weights, block weights and VAE."""


@dataclass(frozen=True)
class CheckpointWeight:
    """A checkpoint and its share of the result."""

    path: Path
    weight: float


@dataclass(frozen=True)
class CheckpointMergeReport:
    """``merged`` of the ``tensors`` were computed; ``missing`` and ``left_out``: names by file, see the function."""

    path: Path
    tensors: int
    merged: int
    missing: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, tuple[str, ...]]


def merge_checkpoints(
    first: Path,
    others: Sequence[CheckpointWeight],
    output: Path,
    *,
    difference: Path | None = None,
    blocks: BlockWeights | None = None,
    vae: Path | None = None,
    precision: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> CheckpointMergeReport:
    """Write ``first * (1 - sum of weights) + sum of weight * other`` to ``output`` (``.safetensors`` or ``.ckpt``).

    With ``difference`` it is ``first + sum of weight * (other - difference)``. ``blocks`` multiply the weights block by
    block, ``BASE`` those of everything outside of the U-Net's numbered blocks. ``vae``: a VAE file or a checkpoint
    whose VAE is taken as it is. The names are the first's: a tensor that another lacks stays as the first's
    (``missing``), one that only another has is not taken (``left_out``); both are listed. Sums are in float32, rounded
    once. A first convolution that reads more channels (inpainting) takes part with those that the others have.
    ``control`` is heeded between two tensors, of which ``listener`` hears. Raises CheckpointError for two families,
    sizes or predictions, and for values that are not finite.
    """
    _check_output(output, [first, *(other.path for other in others), *([difference] if difference else [])])
    if not others:
        raise CheckpointError("one checkpoint alone is not a merge", "name at least two")
    keep_freed_memory()
    recipe = _opened(first, others, difference, blocks, vae)
    source = recipe.first
    if notice := source.translation_notice():
        listener(notice)

    result = _Sum(recipe)
    sources = [result.tensor_source(name, PRECISIONS[precision] if precision else None) for name in source]
    # Known before anything is computed: which tensors take part was counted with their sources.
    if not result.merged:
        raise CheckpointError("nothing would change: every weight is 0", "write CHECKPOINT:0.3")
    missing = {path: tuple(names) for path, names in result.missing.items() if names}
    left_out = _left_out(recipe)
    _tell_of_names(missing, left_out, listener)

    metadata = _metadata(recipe, control)
    write_tensors(output, sources, metadata=metadata, extras=source.extras, listener=listener, control=control)
    if result.broken:
        listener(kept_broken(source, result.broken))
    return CheckpointMergeReport(output, len(sources), result.merged, missing, left_out)


@dataclass(frozen=True)
class _Recipe:
    """What is merged, opened: the first checkpoint, each of the others with its weight, and how.

    ``subtracted``: what the others are differences to, None for a weighted sum. ``vae``: where the VAE is from.
    """

    first: Checkpoint
    others: Sequence[tuple[Checkpoint, float]]
    subtracted: Checkpoint | None
    blocks: BlockWeights | None
    vae: Path | None

    @property
    def beside_first(self) -> list[Checkpoint]:
        """Every checkpoint but the first."""
        return [*(other for other, _ in self.others), *([] if self.subtracted is None else [self.subtracted])]


def _opened(
    first: Path,
    others: Sequence[CheckpointWeight],
    difference: Path | None,
    blocks: BlockWeights | None,
    vae: Path | None,
) -> _Recipe:
    """CheckpointError for checkpoints that have no sum."""
    source = open_checkpoint(first)
    recipe = _Recipe(
        source,
        [(open_checkpoint(other.path), other.weight) for other in others],
        None if difference is None else open_checkpoint(difference),
        None if blocks is None else blocks.listed(source.family.preset_blocks),
        vae,
    )
    for checkpoint in recipe.beside_first:
        _check_alike(source, checkpoint)
    return recipe


def _tell_of_names(
    missing: Mapping[str, Sequence[str]], left_out: Mapping[str, Sequence[str]], listener: Listener
) -> None:
    for what, found in (("lacks", missing), ("alone has", left_out)):
        for path, names in found.items():
            listener(Notice(f"{path} {what} {len(names)} tensors, the first is {names[0]}", "warning"))


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    if output.suffix.lower() not in (".safetensors", ".ckpt"):
        raise OutputError(f"{output} is neither .safetensors nor .ckpt", "the suffix decides the format")
    if any(is_same_or_inside(output, path) for path in inputs):
        raise OutputError(f"{output} is one of the inputs", "give the merged checkpoint a name of its own")


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    if first.family.name != other.family.name:
        raise CheckpointError(
            f"{first.path} is {first.family.title} and {other.path} is {other.family.title}",
            "only checkpoints of one family can be merged",
        )
    predictions = [read_signs(each, each.metadata, each.path).prediction for each in (first, other)]
    if None not in predictions and predictions[0] != predictions[1]:
        raise CheckpointError(
            f"{first.path} predicts {predictions[0]} and {other.path} {predictions[1]}",
            "a sum of the two would predict neither",
        )


Term = tuple[Checkpoint, str, float]
"""A tensor of another checkpoint and what it is multiplied by."""


class _Sum:
    """The tensors of the result, each made when it is written, and what came of them."""

    def __init__(self, recipe: _Recipe) -> None:
        self._recipe, self._source = recipe, recipe.first
        self._baked = {} if recipe.vae is None else _vae_tensors(recipe.vae, recipe.first)
        self.merged = 0
        """How many tensors are computed."""
        self.broken: list[str] = []
        """Tensors with NaN that stay as they are; known when they are written."""
        self.missing: dict[str, list[str]] = {str(checkpoint.path): [] for checkpoint in recipe.beside_first}
        """Names that a checkpoint lacks, by its path."""

    def tensor_source(self, name: str, dtype: torch.dtype | None) -> TensorSource:
        """Where a tensor comes from: the VAE that was asked for, a sum, or the first checkpoint as it is."""
        info = self._source.info(name)
        wanted = saved_dtype(name, info, self._source.family, dtype)
        load: Callable[[], Tensor] = partial(self._own, name, wanted)
        if self._recipe.vae is not None and name in self._baked:
            load = partial(_cast, self._baked[name], wanted, self._recipe.vae, name)
        elif not is_extra(name) and (info.dtype.is_floating_point or name.endswith((".weight", ".bias"))):
            check_is_weight(self._source.path, name, info.dtype)
            if terms := self._terms(name):
                self.merged += 1
                load = partial(_merged, self._source, name, terms, wanted)
        return TensorSource(name, TensorInfo(wanted, info.shape), load)

    def _own(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self._source[name]
        if not is_extra(name) and tensor.is_floating_point() and not is_finite(tensor):
            self.broken.append(name)
        return tensor.to(dtype)

    def _terms(self, name: str) -> list[Term]:
        """What is added to the first's tensor; its own name with a negative number subtracts its share."""
        source, blocks = self._source, self._recipe.blocks
        factor = 1.0 if blocks is None else blocks.of(_layer_name(source, name))
        terms: list[Term] = []
        for other, weight in self._recipe.others:
            strength, minuend = weight * factor, self._recipe.subtracted or source
            found, old = _name_in(other, name, source), _name_in(minuend, name, source)
            # Listed once each: what one of them lacks stays as the first has it.
            for checkpoint, there in ((other, found), (minuend, old)):
                if there is None and name not in self.missing[str(checkpoint.path)]:
                    self.missing[str(checkpoint.path)].append(name)
            if found is None or old is None or strength == 0.0:
                continue

            for checkpoint, there in ((other, found), (minuend, old)):
                _check_shape(source, name, checkpoint, there)
                check_is_weight(checkpoint.path, there, checkpoint.info(there).dtype)
            terms += [(other, found, strength), (minuend, old, -strength)]
        return terms


def _layer_name(source: Checkpoint, name: str) -> str:
    prefix = source.family.unet_prefix
    return "lora_unet_" + name.removeprefix(prefix).replace(".", "_") if name.startswith(prefix) else name


def _name_in(checkpoint: Checkpoint, name: str, source: Checkpoint) -> str | None:
    """What a tensor of ``source`` is called in another checkpoint, whose text encoder may have another prefix."""
    if name in checkpoint:
        return name
    for part in source.family.text_parts:
        own, other = part.prefix(source), part.prefix(checkpoint)
        if (
            own
            and other
            and own != other
            and name.startswith(own)
            and (there := other + name[len(own) :]) in checkpoint
        ):
            return there
    return None


def _left_out(recipe: _Recipe) -> dict[str, tuple[str, ...]]:
    """Names of tensors that the first lacks, by the file that has them."""
    alone = {str(other.path): _only_in(other, recipe.first) for other in recipe.beside_first}
    return {path: names for path, names in alone.items() if names}


def _only_in(checkpoint: Checkpoint, source: Checkpoint) -> tuple[str, ...]:
    return tuple(
        name
        for name in checkpoint
        if not is_extra(name) and name not in source and _name_in(source, name, checkpoint) is None
    )


def _is_first_convolution(source: Checkpoint, name: str) -> bool:
    return name == f"{source.family.unet_prefix}input_blocks.0.0.weight"


def _check_shape(source: Checkpoint, name: str, other: Checkpoint, there: str) -> None:
    wanted, shape = source.info(name).shape, other.info(there).shape
    if wanted == shape or _plain(wanted) == _plain(shape):
        return
    if _is_first_convolution(source, name) and wanted[0] == shape[0] and wanted[2:] == shape[2:]:
        if wanted[1] > shape[1]:
            return
        raise CheckpointError(
            f"{other.path} is {other.purpose}, {source.path} is {source.purpose}",
            "name the one that reads more channels first",
        )
    raise CheckpointError(
        f"{name} has shape {wanted} in {source.path} and {shape} in {other.path}", "the two models differ in size"
    )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A projection's shape, whether it is kept as a matrix or as a 1x1 convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _cast(load: Callable[[], Tensor], dtype: torch.dtype, path: Path, name: str) -> Tensor:
    tensor = load()
    if not is_finite(tensor):
        raise not_finite(path, name, tensor)
    return tensor.to(dtype)


def _merged(source: Checkpoint, name: str, terms: Sequence[Term], dtype: torch.dtype) -> Tensor:
    own = source[name]
    if not is_finite(own):
        raise not_finite(source.path, name, own)
    total = own.to(torch.float64 if own.dtype == torch.float64 else torch.float32, copy=True)
    # A first convolution that reads more channels takes part with those that every other has.
    first = _is_first_convolution(source, name)
    common = min(checkpoint.info(there).shape[1] for checkpoint, there, _ in terms) if first else 0
    for checkpoint, there, factor in terms:
        tensor = checkpoint[there]
        if not is_finite(tensor):
            raise not_finite(checkpoint.path, there, tensor)
        part, tensor = (total[:, :common], tensor[:, :common]) if first else (total, tensor)
        part.add_(tensor.to(total.dtype).reshape(part.shape), alpha=factor)
    result = total.to(dtype)
    if not is_finite(result):
        raise CheckpointError(
            f"{name} would hold values beyond the range of {str(dtype).removeprefix('torch.')}",
            Sentence("use smaller weights, or another precision: ", Action.MERGE_PRECISION),
        )
    return result


def _vae_tensors(path: Path, source: Checkpoint) -> dict[str, Callable[[], Tensor]]:
    """How to get each tensor of the VAE, under the names of ``source``; CheckpointError unless all are there."""
    prefix = source.family.vae_prefix
    tensors = vae_tensors(path)
    found: dict[str, Callable[[], Tensor]] = {}
    for name in source:
        if not name.startswith(prefix) or is_extra(name):
            continue
        there = name.removeprefix(prefix)
        if there not in tensors:
            raise CheckpointError(f"{path} has no VAE tensor {there}", "the file is incomplete")
        if _plain(tuple(tensors[there].shape)) != _plain(source.info(name).shape):
            raise CheckpointError(f"{path}: {there} has another shape than the VAE of {source.path}")
        found[name] = partial(_shaped, tensors, there, source.info(name).shape)
    if not found:
        raise CheckpointError(f"{source.path} holds no VAE to be replaced")
    return found


def _shaped(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    return tensors[name].reshape(shape)


def _metadata(recipe: _Recipe, control: Control) -> dict[str, str]:
    """The recipe with hashes; of the first's metadata, what is true of the result as well."""

    def identity(path: Path) -> dict[str, str]:
        return {"file": file_name(path), **({} if path.is_dir() else {"sha256": sha256_of(path, control)})}

    source, subtracted = recipe.first, recipe.subtracted
    record = {
        "way": "weighted sum" if subtracted is None else "add difference",
        "first": identity(source.path),
        "others": [{**identity(other.path), "weight": weight} for other, weight in recipe.others],
        **({"difference": identity(subtracted.path)} if subtracted is not None else {}),
        **({"blocks": recipe.blocks.text} if recipe.blocks is not None else {}),
        **({"vae": identity(recipe.vae)} if recipe.vae is not None else {}),
    }

    others = [f"{file_name(other.path)}:{weight:g}" for other, weight in recipe.others]
    # The hash is of the first's tensors, not of the sum's.
    kept = {key: value for key, value in source.metadata.items() if key != "modelspec.hash_sha256"}
    signs = read_signs(source, source.metadata, source.path)
    marks = prediction_metadata(signs) if signs.prediction == "v" or signs.zero_terminal_snr else {}
    return {
        **kept,
        **marks,
        "modelspec.merged_from": ", ".join([file_name(source.path), *others]),
        RECIPE_KEY: json.dumps(record),
    }
