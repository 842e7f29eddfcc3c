"""The dialects in which LoRA files name their tensors: one table each, suffix of the key to role of the tensor.

What the suffixes are stands in the layouts of the kinds (:mod:`loraloom.formats.key_layout`). A key is ``<layer
name><suffix>``. The layer names of each dialect are resolved by the code that knows the model
(:class:`loraloom.formats.adapter_file.AdapterTarget` lists every name of a layer). cloneofsimo's files number their
tensors instead: :mod:`loraloom.formats.cloneofsimo`. A file as a whole is read by :mod:`loraloom.formats.lora_keys`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

from loraloom.formats.adapter_kinds import layouts

__all__ = [
    "CLONEOFSIMO",
    "COMFY",
    "DIALECTS",
    "DIFFUSERS_OLD",
    "FOREIGN_SUFFIXES",
    "KOHYA",
    "PEFT",
    "Dialect",
    "adapter_name",
    "alpha_in_use",
    "dialect_of",
    "is_text_layer",
    "part_of_layer",
]


@dataclass(frozen=True)
class Dialect:
    """Whose names they are (``title``); ``prefixes`` start its layer names."""

    name: str
    title: str
    prefixes: tuple[str, ...]
    dotted: bool
    """Whether its layer names have dots."""
    endings: Mapping[str, str] = field(default_factory=dict)
    """What the layer's name ends with, for suffixes that hold a piece of it (``.processor.to_q_lora.up.weight``)."""

    named: bool = False
    """Whether its keys may hold PEFT's name of the adapter and PEFT's names of its wrappers."""

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """A key's suffix to the tensor's role (``down``, ``alpha``), of every kind of adapter."""
        roles: dict[str, str] = {}
        for layout in layouts().values():
            for suffix, role in layout.ends(self.name).items():
                roles.setdefault(suffix, role)
        return roles

    def split(self, key: str) -> tuple[str, str] | None:
        """``key`` as (layer name, role), or None when it is not one of this dialect's."""
        parted = self.parted(key)
        return None if parted is None else (parted[0] + self.endings.get(parted[1], ""), self.roles[parted[1]])

    def parted(self, key: str) -> tuple[str, str] | None:
        """``key`` as what stands before the (longest) suffix that this dialect knows, and that suffix."""
        if self.named:
            key = _WRAPPERS.sub(r"\1", _adapter_name().sub(r"\1\3", key))
        if not key.startswith(self.prefixes):
            return None
        for start in _suffix_starts(key) if self.dotted else (key.find("."),):
            if start > 0 and key[start:] in self.roles:
                return key[:start], key[start:]
        return None

    def suffix(self, role: str) -> str:
        """The (first) suffix that this dialect writes for ``role``."""
        return next(suffix for suffix, known in self.roles.items() if known == role)


_MOST_DOTS = 4
"""In a suffix of a dotted dialect."""


def _suffix_starts(key: str) -> list[int]:
    """Where suffixes can begin, the longest first."""
    starts: list[int] = []
    end = len(key)
    while len(starts) < _MOST_DOTS and (end := key.rfind(".", 0, end)) > 0:
        starts.append(end)
    return starts[::-1]


@cache
def _adapter_name() -> re.Pattern[str]:
    """``.lora_A.my_style.weight``: what PEFT writes where the adapter has a name of its own."""
    modules = sorted({name for layout in layouts().values() for name in layout.peft_modules})
    return re.compile(rf"(\.(?:{'|'.join(map(re.escape, modules))}))\.((?!weight$)[^.]+)(\.weight)?$")


_WRAPPERS = re.compile(r"^((?:unet|text_encoder|text_encoder_2)\.)(?:base_model\.model\.|module\.|_orig_mod\.)+")
"""What PEFT and torch (for several GPUs, or compiled) put around a part that was wrapped before it was saved."""


def adapter_name(key: str) -> str | None:
    """The name of the adapter that PEFT wrote into a key: ``my_style``; None where there is none."""
    found = _adapter_name().search(key)
    return None if found is None else found[2]


KOHYA = Dialect(
    "kohya",
    "kohya sd-scripts, AUTOMATIC1111, ComfyUI",
    ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lycoris_"),
    dotted=False,
)
_BARE_UNET = ("down_blocks.", "mid_block.", "up_blocks.")
"""How layers of a U-Net begin in files that hold nothing else."""

PEFT = Dialect(
    "peft",
    "diffusers with PEFT",
    ("unet.", "text_encoder.", "text_encoder_2.", "base_model.model.", *_BARE_UNET),
    dotted=True,
    named=True,
)
OLD_LAYERS = {
    **{f".processor.to_{name}_lora": f".to_{name}" for name in "qkv"},
    ".processor.to_out_lora": ".to_out.0",
    **{f".to_{name}_lora": f".{name}_proj" for name in "qkv"},
    ".to_out_lora": ".out_proj",
    ".lora_linear_layer": "",
}
"""Attention processors of the U-Net, then the text encoder's two spellings: as in the key, as in the name."""
DIFFUSERS_OLD = Dialect(
    "diffusers-old",
    "diffusers before PEFT (attention processors)",
    ("unet.", "text_encoder.", "text_encoder_2.", *_BARE_UNET),
    dotted=True,
    endings={
        f"{inside}.{end}": ending
        for inside, ending in OLD_LAYERS.items()
        for end in ("down.weight", "up.weight", "alpha")
    },
)
COMFY = Dialect(
    "comfy",
    "ComfyUI (the checkpoint's own names)",
    ("diffusion_model.", "text_encoders."),
    dotted=True,
)
CLONEOFSIMO = Dialect("cloneofsimo", "cloneofsimo/lora, sd_dreambooth_extension (numbered)", (), dotted=False)
"""Its tensors have numbers; the layers get kohya's names when a file is read."""
DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (KOHYA, PEFT, DIFFUSERS_OLD, COMFY, CLONEOFSIMO)
}

FOREIGN_SUFFIXES: Mapping[str, str] = {
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".oft_R": "OFT",
    ".a1.weight": "GLoRA",
    ".ia3_l": "(IA)3 of PEFT",
    ".lora_E": "AdaLoRA",
    ".lora_B.bias": "LoRA with biases",
}
"""Suffixes of adapter kinds that a reader must refuse by name instead of dropping silently."""


def alpha_in_use(stored: float | None, rank: int) -> float:
    """The alpha that acts: what the file stores, zero and negative values too; the rank where it stores none.

    AUTOMATIC1111, Forge, ComfyUI, diffusers and sd-scripts' merging do the same. Only when sd-scripts and LyCORIS go on
    training from a file do they take a zero for the rank.
    """
    return float(rank) if stored is None else stored


_UNET_STARTS = (*_BARE_UNET, "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_PARTS: Mapping[str, tuple[str, ...]] = {
    "text_encoder_2": ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g."),
    "text_encoder": (
        *("lora_te_", "lora_te1_", "text_encoder.", "text_encoders."),
        *("base_model.model.text_model.", "base_model.model.encoder.layers."),
        *("lycoris_text_model_", "lycoris_encoder_layers_"),
    ),
    "unet": (
        *("lora_unet_", "unet.", "diffusion_model."),
        *(f"base_model.model.{start}" for start in _UNET_STARTS),
        *(f"lycoris_{start.replace('.', '_')}" for start in _UNET_STARTS),
        *_BARE_UNET,
    ),
}
"""How the names of a part's layers begin, in files of every dialect."""


def part_of_layer(name: str) -> str:
    """The part (``unet``, ``text_encoder``, ``text_encoder_2``) of a layer by its name in a file; empty if unknown."""
    return next((part for part, starts in _PARTS.items() if name.startswith(starts)), "")


def is_text_layer(name: str) -> bool:
    """Whether a layer, by its name in a file of any dialect, is a text encoder's."""
    return part_of_layer(name).startswith("text_encoder")


def dialect_of(key: str) -> tuple[Dialect, str, str] | None:
    """The dialect that a key speaks, its layer's name and the tensor's role; None where none speaks it.

    Where several do it is the one that knows most of the key's end: ``.lora_linear_layer.alpha`` before ``.alpha``.
    """
    spoken = [(dialect, parted) for dialect in DIALECTS.values() if (parted := dialect.parted(key)) is not None]
    if not spoken:
        return None
    dialect, (before, suffix) = max(spoken, key=lambda one: len(one[1][1]))
    return dialect, before + dialect.endings.get(suffix, ""), dialect.roles[suffix]
