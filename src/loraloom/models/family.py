"""What a family of checkpoints is: the contract, the table of families, and how one is recognised. Imports no torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from loraloom.diffusion.samplers import ALIGNED_SD
from loraloom.errors import SettingsError
from loraloom.registry import Entry, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from loraloom.formats.adapter_file import AdapterTarget
    from loraloom.formats.tensors import TensorInfo

__all__ = ["FAMILIES", "SIZE_CHANNELS", "SIZE_COUNT", "Family", "Infos", "TextPart", "has_axes", "recognise"]

SIZE_COUNT = 6
"""Picture sizes that an SDXL U-Net is given: original height and width, crop top and left, target height and width."""
SIZE_CHANNELS = 256
"""Sinusoids of each."""

Prediction = Literal["epsilon", "v"]
Infos = Mapping[str, "TensorInfo"]


@dataclass(frozen=True)
class TextPart:
    """One text encoder of a family: where its tensors lie, what it is, and which of its layers is read."""

    part: str
    """``text_encoder`` or ``text_encoder_2``."""
    prefixes: tuple[str, ...]
    """What its tensor names begin with; files use one of these."""
    encoder: Literal["clip", "open_clip"]
    pad_id: int
    """The id after the end of a text."""
    skip: int
    """The layer normally read, counted from the end (1 is the last)."""
    normalize: bool
    """Whether the final layer norm follows, whichever layer is read."""
    lora_prefix: str
    """What LoRA files put before its layers: ``lora_te``, ``lora_te1``, ``lora_te2``."""
    trimmed_layers: int | None = None
    """Layers of a file saved without those that are never read (SD 2: 23 of 24); None where none is left out."""

    def skip_in(self, layers: int) -> int:
        """The layer normally read in a file with ``layers`` layers, counted from the end."""
        return 1 if layers == self.trimmed_layers else self.skip

    @property
    def _table(self) -> str:
        return "embeddings.token_embedding.weight" if self.encoder == "clip" else "token_embedding.weight"

    def prefix(self, names: Mapping[str, object]) -> str | None:
        """The prefix that this file uses, None when the encoder is not in it."""
        return next((prefix for prefix in self.prefixes if prefix + self._table in names), None)

    def is_in(self, infos: Infos) -> bool:
        """Whether the file holds the encoder's table of words, and not only a tensor of that name."""
        prefix = self.prefix(infos)
        return prefix is not None and has_axes(infos, prefix + self._table, 2)

    def layers(self, infos: Infos) -> int | None:
        """How many layers the file has of it, None when it is not in the file."""
        prefix = self.prefix(infos)
        if prefix is None:
            return None
        stem = prefix + ("encoder.layers." if self.encoder == "clip" else "transformer.resblocks.")
        return _count_layers(stem, infos)

    def width(self, infos: Infos) -> int | None:
        """How wide the vectors of its tokens are, None when the encoder is not in the file."""
        prefix = self.prefix(infos)
        return None if prefix is None else infos[prefix + self._table].shape[1]


def has_axes(infos: Infos, name: str, axes: int) -> bool:
    """Whether there is a tensor of that name with that many axes: a stranger's file may call anything by any name."""
    return name in infos and len(infos[name].shape) == axes


class Family(ABC):
    """A kind of model. Everything that differs between families is here; nothing else asks which one it is."""

    name: ClassVar[str]
    """``sd1``, ``sd2``, ``sdxl``."""
    title: ClassVar[str]
    """For people: ``Stable Diffusion 1``."""
    base_model_version: ClassVar[str]
    """kohya's ``ss_base_model_version``."""
    modelspec_architecture: ClassVar[str]
    """ModelSpec's architecture of a checkpoint; a LoRA's has ``/lora`` behind it."""
    latent_scale: ClassVar[float]
    default_resolution: ClassVar[int]
    """Width and height in pixels that the family was trained at."""
    resolution_step: ClassVar[int] = 64
    """Widths and heights of training buckets are multiples of this many pixels."""
    probes_prediction: ClassVar[bool] = False
    """Whether files of this family may predict v without saying so anywhere."""
    unet_prefix: ClassVar[str] = "model.diffusion_model."
    vae_prefix: ClassVar[str] = "first_stage_model."
    text_parts: ClassVar[tuple[TextPart, ...]]
    lora_sai_names: ClassVar[bool] = False
    """Whether LoRA files name the U-Net's layers as the checkpoint does (SDXL), not as diffusers does."""
    aligned_sigmas: ClassVar[tuple[float, ...]] = ALIGNED_SD
    """Noise levels of ``Align Your Steps``."""
    preset_blocks: ClassVar[int] = 17
    """Length of the list of block weights that a preset's name (``OUTD``) stands for."""
    kohya_v2: ClassVar[bool] = False
    """kohya's ``ss_v2``."""
    modelspec_implementation: ClassVar[str] = "diffusers"
    """Whose code ModelSpec says the model is for."""
    web_ui_version: ClassVar[str]
    """What the web UI calls the family in what it keeps about a LoRA: ``SD1``."""
    uses_sizes: ClassVar[bool] = False
    """Whether the U-Net is also given picture sizes and a pooled text vector (SDXL)."""

    def base_model_version_for(self, prediction: Prediction) -> str:
        """``base_model_version`` of a checkpoint with that prediction."""
        return self.base_model_version + ("_v" if prediction == "v" and not self.uses_sizes else "")

    def modelspec_architecture_for(self, prediction: Prediction) -> str:
        """``modelspec_architecture`` of a checkpoint with that prediction."""
        return self.modelspec_architecture

    def default_resolution_for(self, prediction: Prediction) -> int:
        """``default_resolution`` of a checkpoint with that prediction."""
        return self.default_resolution

    @abstractmethod
    def recognise(self, infos: Infos) -> bool:
        """Whether a checkpoint with these tensors is of this family."""

    @abstractmethod
    def attention_heads(self, channels: int) -> int:
        """Heads of the U-Net's attention at a width."""

    def adapter_targets(self, infos: Infos) -> list[AdapterTarget]:
        """Every layer that an adapter can be put on: U-Net (3x3 convolutions too) and text encoders."""
        from loraloom.models.targets import clip_targets, open_clip_targets, unet_targets

        targets = unet_targets(_shapes(infos, self.unet_prefix), prefix=self.unet_prefix, sai_names=self.lora_sai_names)
        for part in self.text_parts:
            prefix = part.prefix(infos)
            if prefix is None:
                continue
            names = {"part": part.part, "prefix": prefix, "kohya": part.lora_prefix}
            shapes = _shapes(infos, prefix)
            if part.encoder == "clip":
                targets += clip_targets(shapes, **names)
            else:
                targets += open_clip_targets(shapes, **names, layers=_read_layers(part, shapes))
        return targets

    def check_clip_skip(self, infos: Infos, depth: int) -> None:
        """Raise SettingsError unless ``clip_skip`` leaves every text encoder a layer to read."""
        counts = [(part, part.layers(infos)) for part in self.text_parts]
        most = min((layers - part.skip_in(layers) + 1 for part, layers in counts if layers is not None), default=1)
        if not 1 <= depth <= most:
            problem = f"clip_skip is {depth}, but this model allows 1 to {most}"
            raise SettingsError([problem], "1 suits most checkpoints, 2 those based on NAI")

    def file_targets(self, infos: Infos) -> list[AdapterTarget]:
        """Every layer that a LoRA file may change: :meth:`adapter_targets`, and those that only others train."""
        from loraloom.models.targets import other_text_targets, other_unet_targets

        shapes = _shapes(infos, self.unet_prefix)
        targets = other_unet_targets(shapes, prefix=self.unet_prefix, sai_names=self.lora_sai_names)
        for part in self.text_parts:
            prefix = part.prefix(infos)
            if prefix is not None:
                names = {"part": part.part, "prefix": prefix, "kohya": part.lora_prefix}
                targets += other_text_targets(_shapes(infos, prefix), **names)
        return [*self.adapter_targets(infos), *targets]

    @abstractmethod
    def full_size(self) -> dict[str, tuple[int, ...]]:
        """Every key and shape of a full-size checkpoint, the noise schedule's tables left out."""

    def all_targets(self) -> list[AdapterTarget]:
        """:meth:`file_targets` of a full-size checkpoint: the names that LoRA files of this family can have."""
        import torch

        from loraloom.formats.tensors import TensorInfo

        return self.file_targets({key: TensorInfo(torch.float16, shape) for key, shape in self.full_size().items()})

    @abstractmethod
    def toy(
        self, seed: int = 0, *, channels: int = 32, text_width: int = 32, text_layers: int = 3, vae_channels: int = 32
    ) -> dict[str, Tensor]:
        """A complete small checkpoint in the real layout with random weights, the same for the same arguments."""


FAMILIES = Registry(
    "model family",
    {
        "sd1": Entry("loraloom.models.sd1:SD1", "Stable Diffusion 1.x"),
        "sd2": Entry("loraloom.models.sd2:SD2", "Stable Diffusion 2.x, epsilon and v"),
        "sdxl": Entry("loraloom.models.sdxl:SDXL", "Stable Diffusion XL"),
    },
)


def _shapes(infos: Infos, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): infos[name].shape for name in infos if name.startswith(prefix)}


def _count_layers(stem: str, names: Iterable[str]) -> int:
    """One more than the highest number behind ``stem``; 0 where there is none."""
    numbered = re.compile(re.escape(stem) + r"(\d{1,4})\.", re.ASCII)
    return 1 + max((int(match[1]) for name in names if (match := numbered.match(name))), default=-1)


def _read_layers(part: TextPart, shapes: Mapping[str, object]) -> int | None:
    """How many layers of an OpenCLIP encoder are ever read; None for all (SDXL's pooled text needs the last)."""
    if part.trimmed_layers is None:
        return None
    layers = _count_layers("transformer.resblocks.", shapes)
    return layers - part.skip_in(layers) + 1


def recognise(infos: Infos) -> Family | None:
    """The family whose layout these tensors have, None when no family fits."""
    families: Sequence[Family] = [FAMILIES.load(name)() for name in FAMILIES]
    return next((family for family in families if family.recognise(infos)), None)
