"""The dialects in which LoRA files name their tensors: one table each, suffix of the key to role of the tensor.

A key is ``<layer name><suffix>``. The layer names of each dialect are resolved by whoever knows the model
(:class:`loraloom.formats.adapter_file.AdapterTarget` lists every name of a layer).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["DIALECTS", "FOREIGN_SUFFIXES", "KOHYA", "PEFT", "Dialect", "recognise"]


@dataclass(frozen=True)
class Dialect:
    """``roles`` maps a key's suffix to ``down``, ``up`` or ``alpha``; ``prefixes`` start its layer names."""

    name: str
    title: str
    prefixes: tuple[str, ...]
    roles: Mapping[str, str]

    def split(self, key: str) -> tuple[str, str] | None:
        """``key`` as (layer name, role), or None when it is not one of this dialect's."""
        for suffix, role in self.roles.items():
            if key.endswith(suffix) and key.startswith(self.prefixes):
                return key.removesuffix(suffix), role
        return None

    def suffix(self, role: str) -> str:
        """The (first) suffix that this dialect writes for ``role``."""
        return next(suffix for suffix, known in self.roles.items() if known == role)


KOHYA = Dialect(
    "kohya",
    "kohya sd-scripts, AUTOMATIC1111, ComfyUI",
    ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"),
    {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"},
)
PEFT = Dialect(
    "peft",
    "diffusers with PEFT",
    ("unet.", "text_encoder.", "text_encoder_2.", "base_model.model."),
    {
        ".lora_A.weight": "down",
        ".lora_B.weight": "up",
        ".lora_A.default.weight": "down",
        ".lora_B.default.weight": "up",
        ".lora.down.weight": "down",
        ".lora.up.weight": "up",
        ".alpha": "alpha",
    },
)
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (KOHYA, PEFT)}

FOREIGN_SUFFIXES: Mapping[str, str] = {
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w1_a": "LoKr",
    ".lora_mid.weight": "LoCon with Tucker decomposition",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".on_input": "(IA)3",
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".diff": "full-weight difference",
    ".w_norm": "norm difference",
}
"""Suffixes of adapter kinds that a reader of plain LoRA must refuse by name instead of dropping silently."""


def recognise(keys: Iterable[str]) -> Dialect | None:
    """The dialect that most keys speak, None when none speaks any of them."""
    keys = list(keys)
    counted = [(sum(dialect.split(key) is not None for key in keys), dialect) for dialect in DIALECTS.values()]
    count, dialect = max(counted, key=lambda pair: pair[0])
    return dialect if count else None
