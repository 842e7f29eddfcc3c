"""Which family of models a LoRA was made for, told from the names and shapes in its file."""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.formats.dialects import Shaped

__all__ = ["family_name", "family_of_layers"]

_LAYERS_OF_TEXT = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


_NAMES = {"SD 1.x": "sd1", "SD 2.x": "sd2", "SDXL": "sdxl"}
_VERSIONS = (
    ("sd_v1", "sd1"),
    ("sd_v2", "sd2"),
    ("sdxl_base_v1", "sdxl"),
    ("stable-diffusion-v1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("stable-diffusion-xl", "sdxl"),
)
"""How ``ss_base_model_version`` and ``modelspec.architecture`` begin, by family."""


def family_of_layers(layers: Mapping[str, Mapping[str, Shaped]], metadata: Mapping[str, str]) -> str:
    """The family: from names that only SDXL has, the width of the text that layers read, or what the metadata says."""
    only_sdxl = ("lora_te1_", "lora_te2_", "lora_unet_input_blocks", "text_encoder_2.")
    if any(name.startswith(only_sdxl) for name in layers):
        return "SDXL"
    if any("transformer_blocks_1_" in name or "transformer_blocks.1." in name for name in layers):
        return "SDXL"
    for ending in (("attn2_to_k", "attn2.to_k"), ("self_attn_q_proj", "self_attn.q_proj")):
        for name, roles in layers.items():
            if name.endswith(ending) and (width := _width(roles)) is not None:
                return _LAYERS_OF_TEXT.get(width, _said(metadata) or f"a model that reads text of width {width}")
    return _said(metadata) or "an unknown model"


def _said(metadata: Mapping[str, str]) -> str:
    said = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture", "")
    name = next((name for start, name in _VERSIONS if said.startswith(start)), "")
    return next((title for title, known in _NAMES.items() if known == name), said)


def _width(roles: Mapping[str, Shaped]) -> int | None:
    """How many channels a linear layer reads, as far as its tensors tell."""

    def columns(*names: str) -> int | None:
        return next((roles[name].shape[1] for name in names if name in roles and len(roles[name].shape) > 1), None)

    first, second = columns("lokr_w1", "lokr_w1_b"), columns("lokr_w2", "lokr_w2_b")
    if first is not None and second is not None:
        return first * second
    return columns("down", "hada_w1_b", "diff")


def family_name(layers: Mapping[str, Mapping[str, Shaped]], metadata: Mapping[str, str]) -> str:
    """The family as ``models`` names it (sd1, sd2, sdxl); empty where nothing tells."""
    return _NAMES.get(family_of_layers(layers, metadata), "")
