"""LoRAs that are merged into the model in memory before training: what is learned then is learned on top of them."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from loraloom.adapters.attach import match_layers, read_adapters
from loraloom.adapters.settings import AdapterSettings, parse_base_lora
from loraloom.control import Control, heed, keep_going
from loraloom.errors import FileError, MissingFileError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.files import sha256_of
from loraloom.generation.live_merge import LiveMerge
from loraloom.generation.loras import AppliedLora
from loraloom.models.loaded import LoadedModel
from loraloom.reading import check_readable

__all__ = ["changed_weights", "check_origins", "merge_base_loras", "origin_metadata"]


def merge_base_loras(
    model: LoadedModel, settings: AdapterSettings, listener: Listener = ignore, control: Control = keep_going
) -> None:
    """Add the LoRAs of ``adapter.base_loras`` to the live weights; the checkpoint file is not written.

    All changes are found from the weights as they were loaded, so the order does not matter beyond rounding. Raises
    AdapterError before anything is changed when one of them does not fit. ``control`` is heeded between the LoRAs.
    """
    asked = [parse_base_lora(text) for text in settings.base_loras]
    for path, _ in asked:
        _exists(path, "adapter.base_loras")
    loras = []
    for path, strength in asked:
        heed(control)
        adapters = read_adapters(path, model.file_targets, listener=listener)
        loras.append(AppliedLora(path.stem, adapters, strength))
        weights = f"text encoder {strength.text_encoder:g}, U-Net {strength.unet:g}"
        listener(Notice(f"merged {path.name} into the checkpoint in memory ({weights})"))
    LiveMerge(model).apply(loras)


def changed_weights(model: LoadedModel, settings: AdapterSettings) -> list[nn.Parameter]:
    """The live weights that ``adapter.base_loras`` will change; they then are the run's own, no longer the file's."""
    changed: dict[int, nn.Parameter] = {}
    for path, strength in map(parse_base_lora, settings.base_loras):
        for target in match_layers(read_adapter_file(path), model.file_targets):
            weight = model.layer(target).weight
            if strength.of(target.name) and isinstance(weight, nn.Parameter):
                changed[id(weight)] = weight
    return list(changed.values())


def check_origins(settings: AdapterSettings) -> None:
    """MissingFileError where a file that the training is to start from does not exist."""
    if settings.start_from is not None:
        _exists(settings.start_from, "adapter.start_from")
    for text in settings.base_loras:
        _exists(parse_base_lora(text)[0], "adapter.base_loras")


def origin_metadata(settings: AdapterSettings) -> dict[str, str]:
    """What a LoRA file says about the files that its training started from."""
    told: dict[str, str] = {}
    if settings.start_from is not None:
        _exists(settings.start_from, "adapter.start_from")
        start = {"file": settings.start_from.name, "sha256": sha256_of(settings.start_from)}
        told["loraloom.started_from"] = json.dumps(start)
    merged = []
    for text in settings.base_loras:
        path, strength = parse_base_lora(text)
        _exists(path, "adapter.base_loras")
        weights = {"text_encoder": strength.text_encoder, "unet": strength.unet}
        merged.append({"file": path.name, "sha256": sha256_of(path), **weights})
    if merged:
        told["loraloom.base_loras"] = json.dumps(merged)
    return told


def _exists(path: Path, setting: str) -> None:
    try:
        check_readable(path)
    except MissingFileError as error:
        raise MissingFileError(f"{setting}: {path} does not exist", "check the path; write file:weight") from error
    except FileError as error:
        hint = "give the file of a LoRA inside it" if path.is_dir() else error.hint
        raise type(error)(f"{setting}: {error.problem}", hint) from error
