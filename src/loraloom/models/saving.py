"""Writing a checkpoint: a single file or a Diffusers folder, streamed tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import CheckpointError
from loraloom.formats.tensors import TensorFile, TensorInfo, TensorSource, write_tensors
from loraloom.models.checkpoint import Checkpoint
from loraloom.models.diffusers_folder import write_diffusers_folder
from loraloom.models.family import Family, recognise
from loraloom.models.loaded import LoadedModel, ModelTensors
from loraloom.models.prediction import PredictionChoice, prediction_metadata, read_signs

__all__ = ["save_checkpoint", "saved_dtype"]

_CASTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _InMemory(Mapping[str, Tensor]):
    """Plain tensors with the ``info`` that lazily mapped ones have."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        return TensorInfo(tensor.dtype, tuple(tensor.shape))


Tensors = Checkpoint | ModelTensors | TensorFile | _InMemory


def save_checkpoint(
    source: LoadedModel | Checkpoint | Mapping[str, Tensor],
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model, a checkpoint or tensors under checkpoint names to ``path``.

    ``.safetensors`` or ``.ckpt`` make a single file, a path without suffix or an empty folder a Diffusers folder.
    ``dtype`` converts the weights of the model's parts (None keeps every tensor bit for bit); tables of the noise
    schedule and whole numbers stay as they are. ``metadata`` replaces that of the source; what the model predicts
    is added to it where it is not plain epsilon. Raises OutputError, and CheckpointError for tensors of no family.
    """
    tensors, family, said = _read(source)
    signs = _signs(source, tensors, said)
    if path.suffix and not path.is_dir():
        marks = prediction_metadata(signs) if signs.prediction == "v" or signs.zero_terminal_snr else {}
        written = dict(said if metadata is None else metadata) | marks
        write_tensors(path, [_converted(tensors, name, family, dtype) for name in tensors], metadata=written)
        return
    write_diffusers_folder(path, tensors, family, signs, dtype=dtype, metadata=said if metadata is None else metadata)


def _read(source: LoadedModel | Checkpoint | Mapping[str, Tensor]) -> tuple[Tensors, Family, Mapping[str, str]]:
    if isinstance(source, LoadedModel):
        return source.tensors(), source.family, source.checkpoint.metadata
    if isinstance(source, Checkpoint):
        return source, source.family, source.metadata
    if isinstance(source, ModelTensors):
        return source, source.checkpoint.family, source.checkpoint.metadata
    tensors = source if isinstance(source, TensorFile) else _InMemory(source)
    family = recognise({name: tensors.info(name) for name in tensors})
    if family is None:
        raise CheckpointError("these tensors are not a checkpoint of a known family", "save a whole checkpoint")
    return tensors, family, {}


def _signs(source: object, tensors: Tensors, said: Mapping[str, str]) -> PredictionChoice:
    """What the model predicts: as it was loaded, or as far as the checkpoint says."""
    if isinstance(source, LoadedModel):
        return PredictionChoice(source.prediction, source.schedule.zero_terminal_snr, "the model")
    return read_signs(tensors, said, source.path if isinstance(source, Checkpoint) else None)


def saved_dtype(name: str, info: TensorInfo, family: Family, dtype: torch.dtype | None) -> torch.dtype:
    """The type a tensor is written in when the weights of the model's parts become ``dtype`` (None: its own).

    Tables of the noise schedule and whole numbers keep theirs: programs compute with what the file holds.
    """
    prefixes = (
        family.unet_prefix,
        family.vae_prefix,
        *(prefix for part in family.text_parts for prefix in part.prefixes),
    )
    return info.dtype if dtype is None or info.dtype not in _CASTABLE or not name.startswith(prefixes) else dtype


def _converted(tensors: Tensors, name: str, family: Family, dtype: torch.dtype | None) -> TensorSource:
    info = tensors.info(name)
    wanted = saved_dtype(name, info, family, dtype)
    return TensorSource(name, TensorInfo(wanted, info.shape), lambda: tensors[name].to(wanted))
