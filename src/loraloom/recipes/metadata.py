"""The recipe that a LoRA file carries in its metadata: ``ss_*`` (sd-scripts and this program) and ``modelspec.*``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from loraloom.errors import AdapterError
from loraloom.file_names import check_name
from loraloom.plain_data import finite
from loraloom.recipes.lora_sizes import LoraSizes
from loraloom.recipes.names import REASONS, SPELLINGS, TRAIN_NETWORK_ARGUMENTS, marked, unknown
from loraloom.recipes.recipe import Item, Items, Recipe, field_rows, is_nothing, listed
from loraloom.recipes.record import take_record
from loraloom.recipes.rows import Reading, Row, by_key, without_setting
from loraloom.recipes.sd_scripts import take_arguments
from loraloom.training.record import RECORD

__all__ = ["METADATA_NAMES", "TABLE", "take_metadata"]

METADATA_NAMES = {
    "optimizer": "optimizer_type",
    "batch_size_per_device": "train_batch_size",
    "num_epochs": "max_train_epochs",
    "debiased_estimation": "debiased_estimation_loss",
}
"""Keys behind ``ss_`` that are arguments of sd-scripts under another name."""
_PLACES = frozenset(listed("config_file dataset_config sample_prompts base_weights"))
"""Arguments that name files, besides those that are settings of the type path."""
_PLACE = "a place on a machine: what a LoRA file names is never opened or written to"
_FACT = "a fact about that run or its pictures, not a setting"
_SUBSET_KEYS = listed(
    "shuffle_caption keep_tokens keep_tokens_separator secondary_separator enable_wildcard caption_prefix "
    "caption_suffix "
    "color_aug flip_aug random_crop face_crop_aug_range caption_dropout_rate caption_dropout_every_n_epochs "
    "caption_tag_dropout_rate token_warmup_min token_warmup_step"
)
_DATASET_KEYS = listed(
    "resolution enable_bucket bucket_no_upscale min_bucket_reso max_bucket_reso batch_size_per_device bucket_reso_steps"
)
_SPEC = {
    "modelspec.title": "saving.title",
    "modelspec.trigger_phrase": "saving.trigger",
}


def take_metadata(metadata: Mapping[str, str], recipe: Recipe, *, sizes: Callable[[], LoraSizes] = LoraSizes) -> None:
    """Translate the metadata of a LoRA file. Raises AdapterError for a file that has none.

    ``sizes``: what the tensors say, asked where the metadata give no number for a rank or an alpha.
    """
    found = {key[3:]: value for key, value in metadata.items() if key.startswith("ss_")}
    spec = {key: value for key, value in metadata.items() if key.startswith("modelspec.")}
    if not found and not spec:
        raise AdapterError(
            f"{recipe.source} carries no metadata, so its recipe is not known",
            "only .safetensors files can, and some programs remove it",
        )

    recipe.known_of_required["dataset.folder"] = "a LoRA file does not hold its pictures"
    base = found.get("sd_model_name")
    recipe.known_of_required["checkpoint"] = "it has no name there" if is_nothing(base) else f"it was {base}"

    # A record of ours says everything in our own words; the other keys only repeat parts of it in sd-scripts'.
    record = found.pop(RECORD.removeprefix("ss_"), None)
    if record is not None and take_record(record, recipe):
        for key in metadata:
            if key != RECORD:
                recipe.rest(key)
        return

    file = Reading(recipe, {name: Item(f"ss_{name}", _value(text)) for name, text in found.items()})
    items: Items = {}
    _datasets(file, items)
    rows = by_key(TABLE)
    for name, item in list(file.left.items()):
        if name in rows:
            rows[name].how(rows[name], file)
        if name in file.left:
            _take_argument(name, item, items, recipe)
    _adapt(items, recipe)
    _from_tensors(items, recipe, sizes, _trained_rank(found))
    take_arguments(items, recipe, defaults=False)

    for key, text in spec.items():
        _take_specification(key, text, found.get("output_name"), recipe)
    for key in metadata:
        if not key.startswith(("ss_", "modelspec.")):
            recipe.skip(key, _FACT)


def _take_argument(name: str, item: Item, items: Items, recipe: Recipe) -> None:
    """A key that is an argument of sd-scripts goes on as one, unless it is a place on the machine of that run."""
    argument, value = METADATA_NAMES.get(name, name), item.value
    argument = SPELLINGS.get(argument, argument)
    is_argument = argument in TRAIN_NETWORK_ARGUMENTS or argument in marked() or argument in REASONS

    # In this order: a path is an argument too, but that of the machine that trained means nothing on this one.
    if argument in items:
        recipe.rest(item.key)
    elif argument == "output_name" and (wrong := _wrong_name(value)):
        recipe.skip(item.key, wrong)
    elif not is_nothing(value) and _is_place(argument):
        recipe.skip(item.key, _PLACE)
    elif is_argument:
        items[argument] = item
    elif is_nothing(value) or value is False:
        recipe.rest(item.key)
    else:
        recipe.skip(item.key, unknown(name))
        recipe.unknown.append(item.key)


def _take_specification(key: str, text: str, name: str | None, recipe: Recipe) -> None:
    """``modelspec.*``: a title that is not just the file's name, and the trigger phrase."""
    path = _SPEC.get(key)
    if path is not None and not is_nothing(text) and text != name:
        recipe.set(path, text, key)
    elif key == "modelspec.prediction_type" and text in ("epsilon", "v"):
        recipe.skip(key, "detected from the checkpoint")
    else:
        recipe.skip(key, _FACT)


def _fact(row: Row, file: Reading) -> None:
    """Told where it says something; 0 and false are facts too."""
    if is_nothing(file.left[row.key].value):
        file.rest(row.key)
    else:
        file.skip(row.key, row.remark)


def _steps(row: Row, file: Reading) -> None:
    """Of another number of pictures: the length follows from the epochs where there are some."""
    if file.value("num_epochs") is not None:
        file.skip(row.key, row.remark)


def _wrong_name(value: Any) -> str:
    """Why a LoRA's name cannot be that of a run here; empty where it can. The run has a name of its own then."""
    try:
        check_name(str(value))
    except ValueError as error:
        return str(error)
    return ""


def _is_place(argument: str) -> bool:
    """Whether an argument names a file or folder. sd-scripts writes none of them into a LoRA."""
    row = field_rows().get(marked().get(argument, ""))
    return argument in _PLACES or (row is not None and "path" in row.kinds)


def _value(text: Any) -> Any:
    """Metadata is text; the words that Python prints for True, False and None are those values."""
    return {"True": True, "False": False, "None": None}.get(text, text) if isinstance(text, str) else text


def _datasets(file: Reading, items: Items) -> None:
    """Runs with a dataset file: what the first dataset and its first subset say."""
    try:
        datasets = json.loads(file.value("datasets") or "[]")
    except (TypeError, ValueError, RecursionError):
        return
    if not isinstance(datasets, list) or not datasets or not isinstance(datasets[0], Mapping):
        return

    # Only the first has a place in settings for one run; that there were more is reported.
    first = datasets[0]
    subsets = first.get("subsets")
    subset = subsets[0] if isinstance(subsets, list) and subsets and isinstance(subsets[0], Mapping) else {}

    for keys, entries in ((_DATASET_KEYS, first), (_SUBSET_KEYS, subset)):
        for name in keys:
            if name in entries and not is_nothing(entries[name]):
                items[METADATA_NAMES.get(name, name)] = Item(f"ss_datasets: {name}", entries[name])
    if len(datasets) > 1 or (isinstance(subsets, list) and len(subsets) > 1):
        file.change("datasets", "of several datasets, the first one's settings")


def _adapt(items: Items, recipe: Recipe) -> None:
    """Values that were printed by Python, as they stand on a command line."""
    _printed_optimizer(items)
    _printed_network(items, recipe)
    _printed_resolution(items)
    _printed_rates(items)


def _printed_optimizer(items: Items) -> None:
    """``bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)``."""
    item = items.get("optimizer_type")
    if item is None:
        return
    name, _, options = str(item.value).partition("(")
    items["optimizer_type"] = Item(item.key, name)
    parts = _split(options.removesuffix(")"))
    if parts:
        items["optimizer_args"] = Item("ss_optimizer", parts)


def _printed_network(items: Items, recipe: Recipe) -> None:
    """The arguments of the network are JSON."""
    item = items.get("network_args")
    if item is None or is_nothing(item.value) or not isinstance(item.value, str):
        return
    try:
        items["network_args"] = Item(item.key, json.loads(item.value))
    except (ValueError, RecursionError):
        del items["network_args"]
        recipe.problem("", f"{item.key} is not JSON")


def _printed_resolution(items: Items) -> None:
    """``(512, 512)``, or a list of two; a square is one number here."""
    item = items.get("resolution")
    if item is None:
        return
    if isinstance(item.value, str):
        sides = [side.strip() for side in item.value.strip("()[] ").split(",")]
        items["resolution"] = Item(item.key, sides[0] if len(set(sides)) == 1 else ",".join(sides))
    elif isinstance(item.value, list) and len({*map(str, item.value)}) == 1:
        items["resolution"] = Item(item.key, item.value[0])


def _printed_rates(items: Items) -> None:
    """``[5e-05, 1e-05]``: later versions of sd-scripts print the rates of all text encoders, and ``[]`` for none."""
    for name in ("unet_lr", "text_encoder_lr"):
        item = items.get(name)
        if item is not None and isinstance(item.value, str):
            items[name] = Item(item.key, item.value.strip("()[] "))


def _split(text: str) -> list[str]:
    """``a=1,betas=(0.9, 0.99)`` at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


# -- ranks that are no numbers ------------------------------------------------------------------------------------

_RESIZED = re.compile(
    r"\s*(?:Dynamic resize with [^;]*|dimension is resized|split from DyLoRA) from (\d+)[^;]*(?:;|\Z)"
)
"""What sd-scripts' tools put before the comment of a LoRA that they cut: the rank that it had."""


def _comment(row: Row, file: Reading) -> None:
    """A LoRA that is trained like this one is not resized: only what the person wrote is taken over."""
    item, text = file.left[row.key], str(file.left[row.key].value)
    while (found := _RESIZED.match(text)) is not None:
        text = text[found.end() :]
    if text == str(item.value):
        return
    del file.left[row.key]
    if text.strip():
        file.recipe.set(row.ours, text.strip(), item.key, note="without what was put before it when it was resized")
    else:
        file.recipe.skip(item.key, "it says that the file was resized, which one that is trained like it is not")


def _trained_rank(found: Mapping[str, str]) -> str:
    """A remark on the rank before the LoRA was resized, from its comment; empty where that says nothing."""
    text, rank = str(found.get("training_comment", "")), ""
    while (step := _RESIZED.match(text)) is not None:
        rank, text = step.group(1), text[step.end() :]
    return f"; before it was resized it had rank {rank}, says its comment: adapter.rank={rank}" if rank else ""


_SIZES = {
    "network_dim": "adapter.rank",
    "network_alpha": "adapter.alpha",
    "conv_dim": "adapter.conv_rank",
    "conv_alpha": "adapter.conv_alpha",
}


def _from_tensors(items: Items, recipe: Recipe, sizes: Callable[[], LoraSizes], trained: str) -> None:
    """Ranks and alphas for which the metadata give no number: a word (``Dynamic``), or nothing."""
    network = items.get("network_args")
    options: dict[str, Any] = dict(network.value) if network and isinstance(network.value, Mapping) else {}
    told: Items = {name: items[name] for name in ("network_dim", "network_alpha") if name in items}
    told |= {
        name: Item(f"ss_network_args: {name}", options[name]) for name in ("conv_dim", "conv_alpha") if name in options
    }
    numbers = {name: number for name, item in told.items() if (number := finite(item.value)) is not None}

    # Where the rank is a number, what is not said of convolutions is left to the rules of the program that trained it.
    unsaid = [name for name in _SIZES if name not in numbers]
    if "network_dim" in numbers:
        unsaid = [name for name in unsaid if name in told or name == "network_alpha"]
    found = sizes() if unsaid else LoraSizes()
    if found.kind and "network_module" not in items and "network_dim" in unsaid:
        recipe.set("adapter.kind", found.kind, "(ss_network_module)", note="not given: the kind of the file's layers")

    for name in (name for name in unsaid if name in found.sizes):
        size, item = found.sizes[name], told.get(name)
        value = _for_rank(name, found, numbers)
        said = "not given" if item is None or is_nothing(item.value) else _word(item.value)
        note = f"{said} in the metadata; {value:g} from the tensors, {size.how}"
        note += trained if name == "network_dim" else ""
        recipe.set(_SIZES[name], value, item.key if item else f"(ss_{name})", note=note)
        items.pop(name, None)
        if options.pop(name, None) is not None and not options:
            del items["network_args"]
    if network and options:
        items["network_args"] = Item(network.key, options)


def _for_rank(name: str, found: LoraSizes, numbers: Mapping[str, float]) -> float:
    """An alpha goes with its rank: where the metadata give another one, alpha / rank stays as it is in the file."""
    rank = name.replace("alpha", "dim")
    value = found.sizes[name].value
    return value if rank == name or rank not in numbers else value * numbers[rank] / found.sizes[rank].value


def _word(value: Any) -> str:
    return value.strip() if isinstance(value, str) and value.strip().isalpha() else "not a number"


TABLE = (
    *without_setting(
        _FACT,
        "session_id training_started_at training_finished_at num_train_images num_reg_images num_validation_images "
        "num_batches_per_epoch total_batch_size steps epoch base_model_version sd_scripts_commit_hash sd_model_name "
        "sd_model_hash new_sd_model_hash vae_name vae_hash new_vae_hash dataset_dirs reg_dataset_dirs tag_frequency "
        "bucket_info datasets mixed_precision_used",
        _fact,
    ),
    Row("training_comment", "saving.comment", _comment, "saving.comment, without what resizing put before it"),
    Row("max_train_steps", "steps", _steps, "the length follows from the epochs and your own pictures"),
)
"""Keys behind ``ss_`` that are no argument's, or not always. Those that are go on as arguments of sd-scripts."""
