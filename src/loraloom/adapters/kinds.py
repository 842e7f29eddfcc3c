"""Which kind of adapter a layer of a file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.adapter_kinds import ADAPTERS, kind_of

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.adapters.adapter import Adapter

__all__ = ["adapter_from_tensors"]


def adapter_from_tensors(tensors: Mapping[str, Tensor], target: AdapterTarget) -> Adapter:
    """The adapter that a file's tensors (by role) make on a layer; AdapterError where they do not fit or are broken."""
    import torch

    name = kind_of(tensors)
    if name is None:
        raise AdapterError(
            f"layer {target.name} holds {', '.join(sorted(tensors))}: together they do not make an adapter",
            "the file is incomplete, or mixes kinds that this version does not mix",
        )
    kind: type[Adapter] = ADAPTERS.load(name)
    if not kind.takes(target):
        raise AdapterError(
            f"layer {target.name} is {'a normalization' if target.kind == 'norm' else 'no normalization'}, "
            f"but the file's tensors for it are those of {name}",
            "the LoRA was made for another model",
        )
    adapter = kind.from_tensors(tensors, target)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise AdapterError(f"layer {target.name} of the LoRA holds NaN or infinite values", "the file is damaged")
    return adapter
