"""Full fine-tuning, as DreamBooth does it: the checkpoint's own weights are trained, and a checkpoint comes out.

:class:`WholeModel` takes the place of the adapters in a run and :class:`WholeView` that of their attachment, by the
contract of ``trained.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters.adapter import Rows
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import SettingsError
from loraloom.models.loaded import LoadedModel
from loraloom.training.parameter_groups import part_rates
from loraloom.training.settings import OptimizerSettings, TrainSettings

__all__ = ["WholeModel", "WholeView", "check_whole", "whole_groups", "whole_parts"]


def whole_parts(model: LoadedModel, settings: AdapterSettings) -> list[str]:
    """The parts that are trained: ``unet``, and the text encoders."""
    return [part for part in model.parts if part != "vae" and settings.trains_part(part)]


class WholeModel(nn.Module):
    """The weights of whole parts of a model, in fp32, in place of adapters beside them: a ``Trained``."""

    def __init__(self, model: LoadedModel, parts: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.trained = nn.ModuleDict({part: model.unfreeze(part) for part in parts})

    def parts(self) -> list[str]:
        """The parts that are trained."""
        return list(self.trained)

    def part_parameters(self, part: str) -> list[nn.Parameter]:
        """The trainable tensors of one part."""
        return list(self.trained[part].parameters())

    def put_on(self, layers: Mapping[str, nn.Module]) -> WholeView:
        """It is the model, so nothing is put on any layer."""
        return WholeView(self)

    def rest_text_encoders(self) -> None:
        """Nothing is dropped anyhow."""

    def seed_step(self, *key: int | str) -> None:
        """Nothing is dropped."""

    def take_rows(self, unet: Rows | None, text_encoder: Rows | None) -> None:
        """Nothing is dropped."""

    def apply_max_norm(self, limit: float) -> None:
        """Raises ValueError: there is no change to be shortened, and :func:`check_whole` refuses the setting."""
        raise ValueError("adapter.max_norm limits the change that an adapter makes")

    def stored(self) -> Iterator[tuple[str, nn.Parameter, str]]:
        """(part, weight, its name in the checkpoint file)."""
        for part, module in self.trained.items():
            for name, parameter in module.named_parameters():
                yield part, parameter, self.model.prefixes[part] + name


class WholeView:
    """How much of the training shows: weight 0 is the checkpoint as it was, 1 as it is trained, others in between.

    Weights other than 1 keep the trained values aside, and bring them back bit for bit. A ``View``.
    """

    def __init__(self, whole: WholeModel) -> None:
        self._whole = whole
        self._aside: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def set_weights(self, *, unet: float, text_encoder: float) -> None:
        """Show the trained parts so strongly."""
        strength = LoraStrength(unet, text_encoder)
        for part, parameter, name in self._whole.stored():
            weight = strength.of_part(part)
            trained = self._aside.pop(parameter, None)
            if trained is not None:
                parameter.copy_(trained)
            if weight == 1.0:
                continue

            # Only now, since the file need not be read for what is shown as it is trained.
            self._aside[parameter] = parameter.detach().clone()
            base = self._whole.model.checkpoint[name].to(parameter.device, torch.float32)
            parameter.copy_(base if weight == 0.0 else torch.lerp(base, parameter, weight))

    def detach(self) -> None:
        """Nothing to take off: what was trained is the model."""
        self.set_weights(unet=1.0, text_encoder=1.0)


def whole_groups(whole: WholeModel, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The optimizer's groups, one for each part: ``{"params", "lr", "base_lr", "name", "part"}``."""
    rates = part_rates(whole.parts(), settings)
    return [
        {
            "params": whole.part_parameters(part),
            "lr": rates[part],
            "base_lr": rates[part],
            "name": part,
            "part": part,
        }
        for part in whole.parts()
    ]


def check_whole(settings: TrainSettings) -> None:
    """SettingsError for what cannot be done when the whole checkpoint is trained, all of it at once."""
    adapter, optimizer = settings.adapter, settings.optimizer
    loraplus = (optimizer.loraplus_ratio, optimizer.loraplus_unet_ratio, optimizer.loraplus_text_encoder_ratio)
    rows = (
        (
            settings.quantize != "none",
            f"quantize={settings.quantize}: weights in a few bits cannot be trained themselves",
        ),
        (
            settings.saving.format == "pt",
            "saving.format=pt is for LoRA files; a checkpoint is safetensors or ckpt",
        ),
        (
            adapter.start_from is not None,
            "adapter.start_from: there is no LoRA to go on from; adapter.base_loras merges one first",
        ),
        (bool(adapter.max_norm), "adapter.max_norm limits the change that an adapter makes"),
        (any(loraplus), "optimizer.loraplus_*: a checkpoint has no up matrices"),
        (
            optimizer.block_lr != type(optimizer.block_lr)(),
            "optimizer.block_lr gives rates to the blocks of an adapter",
        ),
    )
    problems = [f"{problem} (method=full)" for is_asked_for, problem in rows if is_asked_for]
    if problems:
        raise SettingsError(problems, "or train a LoRA: method=adapter")
