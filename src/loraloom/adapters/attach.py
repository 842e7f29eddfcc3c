"""A LoRA in memory (AdapterSet), and putting it on a live model (Attachment) without touching any weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loraloom.adapters.lora import Adapter, LoraAdapter
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError, SettingsError
from loraloom.formats.adapter_file import AdapterFile, AdapterTarget, layer_keys, read_adapter_file
from loraloom.randomness import seed_of

__all__ = ["AdapterSet", "Attachment", "attach", "choose_targets", "create_adapters", "match_layers", "read_adapters"]


class AdapterSet(nn.Module):
    """Adapters by target: a whole LoRA. ``len()`` is the number of layers."""

    def __init__(self, adapters: Mapping[AdapterTarget, Adapter], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.targets = {target.name: target for target in adapters}
        self.adapters = nn.ModuleDict({target.name: adapter for target, adapter in adapters.items()})
        self.metadata = dict(metadata or {})

    def __len__(self) -> int:
        return len(self.targets)

    def items(self) -> Iterator[tuple[AdapterTarget, Adapter]]:
        """Every target with its adapter."""
        for name, target in self.targets.items():
            adapter = self.adapters[name]
            assert isinstance(adapter, Adapter)
            yield target, adapter

    def parts(self) -> list[str]:
        """The parts of the model that this LoRA changes, in the order of their first layer."""
        return list(dict.fromkeys(target.part for target in self.targets.values()))

    def part_parameters(self, part: str) -> list[nn.Parameter]:
        """The trainable tensors of one part."""
        return [
            parameter for target, adapter in self.items() if target.part == part for parameter in adapter.parameters()
        ]

    def file_tensors(self) -> dict[str, Tensor]:
        """Every tensor under its kohya key."""
        return {
            key: tensor
            for target, adapter in self.items()
            for key, tensor in layer_keys(target.name, adapter.tensors()).items()
        }

    def seed_step(self, *key: int | str) -> None:
        """Make this step's dropout a function of ``key`` and the layer alone."""
        for target, adapter in self.items():
            if isinstance(adapter, LoraAdapter) and adapter.dropout:
                adapter.dropout_seed = seed_of(*key, "dropout", target.name)


class Attachment:
    """A LoRA on a live model. Weights per part can be changed at any time; detach() leaves the model as it was.

    The adapters compute beside the layers (a side branch), so no weight of the model is ever written.
    """

    def __init__(self, adapters: AdapterSet, layers: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        self.adapters = adapters
        self._weights = dict(weights)
        self._handles: list[RemovableHandle] = [
            layers[target.name].register_forward_hook(partial(self._hook, target.part, adapter))
            for target, adapter in adapters.items()
        ]

    def _hook(self, part: str, adapter: Adapter, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        weight = self._weights.get(part, 1.0)
        return output if weight == 0.0 else adapter.add_to(output, inputs[0], layer, weight)

    def set_weights(self, *, unet: float, text_encoder: float) -> None:
        """Change how strongly each part is applied; 0 leaves the layer's output bit for bit."""
        self._weights = {"unet": unet, "text_encoder": text_encoder, "text_encoder_2": text_encoder}

    def detach(self) -> None:
        """Take the LoRA off. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    adapters: AdapterSet,
    layers: Mapping[str, nn.Module],
    *,
    unet: float = 1.0,
    text_encoder: float = 1.0,
) -> Attachment:
    """Put a LoRA on the layers of a live model (``layers``: module by kohya name). Returns the handle to remove it."""
    missing = [name for name in adapters.targets if name not in layers]
    if missing:
        raise AdapterError(f"the model has no layer {missing[0]} ({len(missing)} of {len(adapters)} are missing)")
    attachment = Attachment(adapters, layers, {})
    attachment.set_weights(unet=unet, text_encoder=text_encoder)
    return attachment


def choose_targets(settings: AdapterSettings, targets: Sequence[AdapterTarget]) -> list[AdapterTarget]:
    """The layers that these settings train."""
    chosen = [
        target
        for target in targets
        if (settings.unet if target.part == "unet" else settings.text_encoder)
        and (settings.conv_rank > 0 or not target.extended)
    ]
    if not chosen:
        raise SettingsError(["adapter: nothing is trained"], "set adapter.unet or adapter.text_encoder to true")
    return chosen


def create_adapters(settings: AdapterSettings, targets: Sequence[AdapterTarget], *, seed: int) -> AdapterSet:
    """A new LoRA on the layers that the settings choose; it starts as the identity."""
    adapters = {}
    for target in choose_targets(settings, targets):
        rank, alpha = settings.rank, settings.alpha
        if target.kind == "conv3x3":
            rank, alpha = settings.conv_rank, settings.conv_alpha
        adapters[target] = LoraAdapter.create(target, rank, alpha or float(rank), dropout=settings.dropout, seed=seed)
    return AdapterSet(adapters)


def match_layers(file: AdapterFile, targets: Sequence[AdapterTarget]) -> dict[AdapterTarget, str]:
    """Which layer of the file belongs to which target; AdapterError unless every layer of the file finds its own."""
    known: dict[str, AdapterTarget] = {}
    for target in targets:
        names = (target.name, *target.aliases, *_dotted_names(target))
        known.update(dict.fromkeys(names, target))
    matched: dict[AdapterTarget, str] = {}
    unknown = []
    for name in file.layers:
        found = known.get(name)
        if found is None:
            unknown.append(name)
        elif found in matched:
            raise AdapterError(f"{file.path} names layer {found.name} twice: {matched[found]} and {name}")
        else:
            matched[found] = name
    if not matched:
        raise AdapterError(
            f"{file.path}: 0 of its {len(file.layers)} layers exist in this model "
            f"(the first is {next(iter(file.layers))})",
            _family_hint(file),
        )
    if unknown:
        raise AdapterError(
            f"{file.path}: {len(unknown)} of its {len(file.layers)} layers do not exist in this model "
            f"(the first is {unknown[0]})",
            _family_hint(file),
        )
    return matched


def read_adapters(path: Path, targets: Sequence[AdapterTarget]) -> AdapterSet:
    """Read a LoRA file for a model with these targets; AdapterError when it was made for another one."""
    file = read_adapter_file(path)
    adapters: dict[AdapterTarget, Adapter] = {}
    for target, name in match_layers(file, targets).items():
        try:
            adapters[target] = LoraAdapter.from_tensors(file.layers[name], target)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error.problem}", error.hint or _family_hint(file)) from error
    adapter_set = AdapterSet(adapters, file.metadata)
    adapter_set.requires_grad_(False)
    return adapter_set.eval()


def _dotted_names(target: AdapterTarget) -> list[str]:
    """diffusers' spellings of a layer; transformers 5 dropped the ``text_model`` level that files still carry."""
    short = target.diffusers_name.removeprefix("text_model.")
    paths = [target.diffusers_name] if target.part == "unet" else [short, f"text_model.{short}"]
    names = [f"{target.part}.{path}" for path in paths]
    return names + [f"base_model.model.{path}" for path in paths]


def _family_hint(file: AdapterFile) -> str:
    made_for = file.metadata.get("ss_base_model_version") or file.metadata.get("modelspec.architecture")
    if made_for:
        return f"the file says it was made for {made_for}"
    names = list(file.layers)
    if any(name.startswith(("lora_te1_", "lora_te2_", "lora_unet_input_blocks")) for name in names):
        return "its layer names are those of SDXL"
    return "use a checkpoint of the family the LoRA was trained on"
