"""What OneTrainer trains: the model, the kind of adapter, its layers, the parts and their rates."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from loraloom.errors import FileFormatError
from loraloom.plain_data import shown
from loraloom.recipes.onetrainer_file import OneTrainerFile
from loraloom.recipes.onetrainer_names import FAMILIES
from loraloom.recipes.recipe import Item, is_nothing
from loraloom.recipes.rows import Row

How = Callable[[Row, OneTrainerFile], None]


# -- the model -----------------------------------------------------------------------------------------------------


def family(row: Row, file: OneTrainerFile) -> None:
    """Raises FileFormatError for a model that is not trained here."""
    name = file.word(row.key)
    if name and not name.startswith(FAMILIES):
        raise FileFormatError(
            f"{file.recipe.source} is a recipe for {name.lower().replace('_', ' ')}",
            "LoRAs for Stable Diffusion 1, 2 and XL are trained here",
        )
    file.recipe.rest(row.key)


def method(row: Row, file: OneTrainerFile) -> None:
    name = file.word(row.key)
    if name == "FINE_TUNE":
        file.recipe.set(row.ours, "full", row.key)
    elif name == "LORA":
        file.recipe.rest(row.key)
    else:
        file.recipe.problem(row.ours, f"training_method = {name or 'nothing'}: LoRAs and whole models are trained here")


def base_model(row: Row, file: OneTrainerFile) -> None:
    name = file.taken(row.key)
    if not is_nothing(name):
        file.as_sd_scripts(pretrained_model_name_or_path=Item(row.key, name))


def run_name(row: Row, file: OneTrainerFile) -> None:
    target = file.taken(row.key)
    if is_nothing(target):
        return
    if not isinstance(target, str):
        file.recipe.problem(row.ours, f"{row.key} = {shown(target)} is not a path")
        return
    name = re.split(r"[\\/]", target.rstrip("\\/"))[-1]
    name = re.sub(r"\.(safetensors|ckpt|pt)$", "", name, flags=re.IGNORECASE)
    file.recipe.set(row.ours, name, row.key, note=row.remark)


def file_format(row: Row, file: OneTrainerFile) -> None:
    form = file.word(row.key)
    if "DIFFUSERS" in form or form in ("INTERNAL", "ORIGINAL_LORA", "COMFY_LORA"):
        file.recipe.skip(row.key, row.remark)
    else:
        file.recipe.rest(row.key)


# -- the adapter ---------------------------------------------------------------------------------------------------


def kind(row: Row, file: OneTrainerFile) -> None:
    name = file.word(row.key)
    if name in ("", "LORA") or file.full:
        file.recipe.rest(row.key)
    elif name.startswith("OFT"):
        file.recipe.problem(row.ours, f"peft_type = {name}: OFT is not offered; adapter.kind=lora is nearest to it")
    else:
        file.recipe.set(row.ours, file.kind, row.key)


def decompose(row: Row, file: OneTrainerFile) -> None:
    """DoRA, of a plain LoRA alone."""
    file.taken(row.key)
    if file.is_dora:
        file.recipe.set(row.ours, "dora", row.key)
    else:
        file.recipe.rest(row.key)


def output_axis(row: Row, file: OneTrainerFile) -> None:
    if file.taken(row.key) and file.is_dora:
        file.recipe.set(row.ours, "output", row.key)
    else:
        file.recipe.rest(row.key)


def of_lokr(default: Any) -> How:
    """A field for LoKr, which every export holds."""

    def take(row: Row, file: OneTrainerFile) -> None:
        value = file.taken(row.key)
        if file.is_lokr and value is not None and value != default:
            file.recipe.set(row.ours, value, row.key)
        else:
            file.recipe.rest(row.key)

    return take


def rank(row: Row, file: OneTrainerFile) -> None:
    """LoKr has a rank of its own, which was read before."""
    value = file.taken(row.key)
    taken_from_lokr = file.is_lokr and file.recipe.get("adapter.rank") is not None
    if file.full or taken_from_lokr or value is None:
        file.recipe.rest(row.key)
    else:
        file.recipe.set(row.ours, value, row.key)


def alpha(row: Row, file: OneTrainerFile) -> None:
    value = file.taken(row.key)
    if file.full or value is None:
        file.recipe.rest(row.key)
    else:
        file.recipe.set(row.ours, value, row.key)


_PRESETS = {"full": [], "attn-mlp": ["attentions"], "attn-only": ["attn"]}
"""What a layer's name in diffusers has to have in it."""


def layers(row: Row, file: OneTrainerFile) -> None:
    """Which layers of the U-Net: parts of diffusers' names, and everything where none is given."""
    recipe = file.recipe
    preset = str(file.taken("layer_filter_preset") or "full")
    text = str(file.taken("layer_filter") or "")
    is_regex = bool(file.taken("layer_filter_regex"))
    recipe.rest("layer_filter_regex")

    # A preset counts before the text that is beside it; where it is no preset that is known, the text does.
    wanted = _PRESETS.get(preset)
    key, other = "layer_filter_preset", "layer_filter"
    if wanted is None:
        key, other = other, key
        wanted = [part.strip() for part in text.split(",") if part.strip()]
    recipe.rest(other)

    if wanted == ["attentions"]:
        recipe.change(key, "the layers that are trained by default")
    elif not wanted and file.full:
        recipe.rest(key)
    elif not wanted:
        _convolutions_too(key, file)
    elif is_regex or any("block" in part for part in wanted):
        recipe.skip(key, f"{', '.join(wanted)}: say it with adapter.include, on names such as lora_unet_mid_block_...")
    else:
        patterns = [f"^lora_unet_.*{re.escape(part.replace('.', '_'))}" for part in wanted]
        recipe.set("adapter.include", [*patterns, "^lora_te"], key)


def _convolutions_too(key: str, file: OneTrainerFile) -> None:
    recipe = file.recipe
    rank, alpha = recipe.get("adapter.rank"), recipe.get("adapter.alpha")
    if rank is not None:
        recipe.set("adapter.conv_rank", rank, key, note="convolutions too, with the rank of the others")
    if alpha is not None:
        recipe.set("adapter.conv_alpha", alpha, "(layer_filter: alpha)", note="as of the other layers")
    recipe.change("(layer_filter: rest)", "the first and last layer and the timestep's are not trained here")


# -- parts and their rates -----------------------------------------------------------------------------------------


def scaler(row: Row, file: OneTrainerFile) -> None:
    file.word(row.key)
    if file.rate_factor > 1:
        file.recipe.change(row.key, f"every rate was multiplied by the root of {file.rate_factor}")
    else:
        file.recipe.rest(row.key)


def rate(row: Row, file: OneTrainerFile) -> None:
    value = file.rate(row.key)
    if value is not None:
        file.recipe.set(row.ours, value, row.key)


def unet(row: Row, file: OneTrainerFile) -> None:
    file.taken(row.key)
    if file.trains("unet"):
        file.recipe.rest(row.key)
    else:
        file.recipe.set(row.ours, False, row.key)


def text_encoders(row: Row, file: OneTrainerFile) -> None:
    """All of them, none, or one of SDXL's two."""
    recipe, parts = file.recipe, _text_encoders_of(file)
    for part in ("text_encoder", "text_encoder_2"):
        file.taken(f"{part}.train")
        recipe.rest(f"{part}.train")
    frozen = [part for part in parts if not file.trains(part)]
    if len(frozen) == len(parts):
        recipe.set("adapter.text_encoder", False, "text_encoder.train")
    elif frozen:
        prefix = "^lora_te1_" if frozen == ["text_encoder"] else "^lora_te2_"
        recipe.set("adapter.exclude", [prefix], f"{frozen[0]}.train")


def unet_rate(row: Row, file: OneTrainerFile) -> None:
    value = file.rate(row.key)
    if value is None or not file.trains("unet"):
        file.recipe.rest(row.key)
    else:
        file.recipe.set(row.ours, value, row.key)


def text_rates(row: Row, file: OneTrainerFile) -> None:
    """One rate, or one for each of SDXL's two text encoders; the general one stands in for one that is not given."""
    recipe, parts = file.recipe, _text_encoders_of(file)
    own = {part: file.rate(f"{part}.learning_rate") for part in ("text_encoder", "text_encoder_2")}
    for part, value in own.items():
        if value is None or not file.trains(part) or part not in parts:
            recipe.rest(f"{part}.learning_rate")

    # One rate alone would be that of both encoders: what the other one would have had is filled in.
    given = [own[part] for part in parts]
    if all(value is None for value in given) or not any(file.trains(part) for part in parts):
        return
    values = [file.general_rate if value is None else value for value in given]
    if None not in values:
        same = len(set(values)) == 1
        recipe.set("optimizer.text_encoder_lr", values[0] if same else values, "text_encoder.learning_rate")


def stops(part: str) -> How:
    """When the training of a part ends."""

    def take(row: Row, file: OneTrainerFile) -> None:
        key = f"{part}.stop_training_after"
        unit, after = file.word(f"{key}_unit"), file.number(key)
        file.recipe.rest(f"{key}_unit")
        is_there = part != "text_encoder_2" or file.has_two_text_encoders
        if after <= 0 or unit not in ("EPOCH", "STEP") or not file.trains(part) or not is_there:
            file.recipe.rest(key)
        elif part == "unet":
            file.recipe.skip(key, "the U-Net is trained to the end; give epochs or steps")
        elif part == "text_encoder_2":
            file.recipe.skip(key, "both text encoders stop together: optimizer.text_encoder_stop")
        elif unit == "STEP":
            file.count(key, "optimizer.text_encoder_stop", after)
        else:
            _stop_after_epochs(key, after, file)

    return take


def _stop_after_epochs(key: str, after: float, file: OneTrainerFile) -> None:
    epochs = file.whole("epochs", 0)
    if epochs and after < epochs:
        share = round(after / epochs, 6)
        note = f"{after:g} epochs are this share of the run"
        file.recipe.set("optimizer.text_encoder_stop", share, key, note=note)
    else:
        file.recipe.rest(key)


def _text_encoders_of(file: OneTrainerFile) -> tuple[str, ...]:
    return ("text_encoder", "text_encoder_2") if file.has_two_text_encoders else ("text_encoder",)
