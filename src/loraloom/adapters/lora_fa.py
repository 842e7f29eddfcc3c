"""LoRA-FA (Zhang et al., arXiv:2308.03303): a LoRA whose ``down`` stays as it was drawn."""

from __future__ import annotations

from loraloom.adapters.lora import LoraAdapter

__all__ = ["LoraFaAdapter"]


class LoraFaAdapter(LoraAdapter):
    """Only ``up`` is trained: half of the trained values, and no layer's input is kept. Its file is a LoRA's."""

    kind = "lora_fa"
    stored_kind = "lora"
    trains_down = False
    network_module = "networks.lora_fa"
