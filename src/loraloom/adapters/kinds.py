"""The kinds of adapters by name, and which one a layer of a file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.dialects import kind_of
from loraloom.registry import Entry, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.adapters.adapter import Adapter

__all__ = ["ADAPTERS", "adapter_from_tensors"]

ADAPTERS = Registry(
    "adapter kind",
    {
        "lora": Entry("loraloom.adapters.lora:LoraAdapter", "LoRA, also for convolutions (LoCon)"),
        "lora_fa": Entry("loraloom.adapters.lora_fa:LoraFaAdapter", "LoRA with a frozen down matrix"),
        "dora": Entry("loraloom.adapters.dora:DoraAdapter", "LoRA with trained lengths of the weight"),
        "loha": Entry("loraloom.adapters.loha:LohaAdapter", "elementwise product of two low-rank matrices"),
        "lokr": Entry("loraloom.adapters.lokr:LokrAdapter", "Kronecker product"),
        "ia3": Entry("loraloom.adapters.ia3:Ia3Adapter", "one factor for each channel"),
        "full": Entry("loraloom.adapters.full:FullAdapter", "the whole difference of the weight"),
        "norm": Entry("loraloom.adapters.norm:NormAdapter", "difference of a normalization; read, not trained"),
    },
)


def adapter_from_tensors(tensors: Mapping[str, Tensor], target: AdapterTarget) -> Adapter:
    """The adapter that a file's tensors (by role) make on a layer; AdapterError where they do not fit or are broken."""
    import torch

    kind = kind_of(tensors)
    if kind is None:
        raise AdapterError(
            f"layer {target.name} holds {', '.join(sorted(tensors))}: together they are no kind of adapter",
            "the file is incomplete, or mixes kinds that this version does not mix",
        )
    if (kind == "norm") != (target.kind == "norm"):
        raise AdapterError(
            f"layer {target.name} is {'a normalization' if target.kind == 'norm' else 'no normalization'}, "
            f"but the file's tensors for it are those of {kind}",
            "the LoRA was made for another model",
        )
    adapter: Adapter = ADAPTERS.load(kind).from_tensors(tensors, target)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise AdapterError(f"layer {target.name} of the LoRA holds NaN or infinite values", "the file is damaged")
    return adapter
