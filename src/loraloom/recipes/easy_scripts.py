"""LoRA_Easy_Training_Scripts: the TOML that its window saves, a section for each panel.

``[[subsets]]`` are the folders; a panel's ``args`` go to sd-scripts as arguments, its ``dataset_args`` into the dataset
file. Source: the program that turns both into what sd-scripts reads (utils/validation.py of its backend): what is
empty, 0 or false is left out there, and the rest is sd-scripts' own, defaults too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loraloom.plain_data import shown
from loraloom.recipes.dataset_config import take_dataset_config
from loraloom.recipes.recipe import Item, Items, Recipe, listed
from loraloom.recipes.sd_scripts import items_of, take_arguments

__all__ = ["is_easy_scripts", "take_easy_scripts"]

_OTHER_FAMILIES = ("flux_args", "sd3_args", "anima_args", "chroma_args", "lumina_args")
_WINDOW = listed("save_toml save_toml_location easy_name name sdxl")
_NOT_OFFERED = {
    "tag_occurrence": "tags are counted in the LoRA's metadata in any case",
    "tag_file_location": "tags are counted in the LoRA's metadata in any case",
}
_SCHEDULES = {
    "CosineAnnealingWarmRestarts": "cosine_with_restarts",
    "CosineAnnealingWarmupRestarts": "cosine_with_restarts",
    "RexAnnealingWarmRestarts": "rex",
    "Rex": "rex",
}
"""Classes of lr schedules that come with that program, and what is like them here."""
_OPTIMIZERS = {"came": "CAME", "rmsprop": "RMSprop", "compass": "Compass", "lpfadamw": "LPFAdamW"}
_PACKAGE = "LoraEasyCustomOptimizer."
_LISTS = listed("down_lr_weight up_lr_weight block_dims block_alphas conv_block_dims conv_block_alphas")


def is_easy_scripts(data: Any) -> bool:
    """Whether parsed TOML is what that window saves: sections in sections called args, and subsets without datasets."""
    if not isinstance(data, Mapping):
        return False
    panels = [key for key, table in _panels(data) if {"args", "dataset_args"} & set(table)]
    return bool(panels) or (isinstance(data.get("subsets"), list) and "datasets" not in data)


def take_easy_scripts(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate such a file into ``recipe``."""
    pairs: list[tuple[str, str, Any]] = []
    general: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for panel, table in _panels(data):
        for name, value in _entries(panel, table, "args", recipe):
            pairs.append((f"{panel}.args.{name}", name, value))
        for name, value in _entries(panel, table, "dataset_args", recipe):
            label = f"{panel}.dataset_args.{name}"
            if _is_left_out(name, value):
                recipe.rest(label)
            else:
                general[name] = value
                origin[f"general.{name}"] = label
        for name in set(table) - {"args", "dataset_args"}:
            recipe.skip(f"{panel}.{name}", "no part of a panel that is known")
            recipe.unknown.append(f"{panel}.{name}")
    _kind_of_training(data, pairs, recipe)
    items = _arguments(pairs, recipe)
    datasets = data.get("datasets") if isinstance(data.get("datasets"), list) else [{"subsets": data.get("subsets")}]
    take_dataset_config(
        {"general": general, "datasets": [_without_empty(dataset, recipe) for dataset in datasets or []]},
        recipe,
        outer=items,
        source=recipe.source,
    )
    take_arguments(items, recipe)
    recipe.rename(lambda key: origin.get(key, key.removeprefix("datasets[0].") if "datasets" not in data else key))


def _panels(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in data.items():
        if str(key).endswith("_args") and isinstance(value, Mapping):
            yield str(key), value


def _entries(panel: str, table: Mapping[str, Any], part: str, recipe: Recipe) -> list[tuple[str, Any]]:
    """The settings in one of the two parts of a panel."""
    found = table.get(part, {})
    if isinstance(found, Mapping):
        return [(str(name), value) for name, value in found.items()]
    recipe.problem("", f"{panel}.{part} = {shown(found)} is not a table")
    return []


def _kind_of_training(data: Mapping[str, Any], pairs: list[tuple[str, str, Any]], recipe: Recipe) -> None:
    mode = data.get("train_mode")
    name = mode.get("train_mode") if isinstance(mode, Mapping) else mode

    if name not in (None, "lora"):
        recipe.problem("method", f"train_mode = {name}: LoRAs are trained here, not embeddings; method=adapter")
    elif name is not None:
        recipe.rest("train_mode.train_mode")

    # The window saves the panels of all families; one that is filled in is another family's training.
    for panel in _OTHER_FAMILIES:
        table = data.get(panel)
        if isinstance(table, Mapping) and table.get("args"):
            recipe.problem("", f"{panel} is filled in: that family of models is not trained here (SD 1, 2 and XL are)")
            for pair in [pair for pair in pairs if pair[0].startswith(f"{panel}.")]:
                pairs.remove(pair)
                recipe.skip(pair[0], "belongs to another family of models")

    for key, value in data.items():
        if not str(key).endswith("_args") and key not in ("subsets", "datasets", "train_mode"):
            recipe.skip(str(key), f"no panel that is known; it holds {len(value) if isinstance(value, Mapping) else 1}")
            recipe.unknown.append(str(key))


def _is_left_out(name: str, value: Any) -> bool:
    """What that program does not pass on: empty values, and the usual length of captions."""
    return not value or (name == "max_token_length" and value == 75)


def _arguments(pairs: list[tuple[str, str, Any]], recipe: Recipe) -> Items:
    """The panels' args as sd-scripts' arguments."""
    kept: list[tuple[str, Any]] = []
    labels: dict[str, str] = {}
    modules: list[str] = []

    # The window writes every field, also those that are off: what is left out there says nothing here.
    for label, name, value in pairs:
        if name in _WINDOW or name == "fa" or _is_left_out("", value):
            recipe.rest(label)
            modules += ["networks.lora_fa"] if name == "fa" and value else []
        elif name in _NOT_OFFERED:
            recipe.skip(label, _NOT_OFFERED[name])
        else:
            kept.append((name, value))
            labels[name] = label

    found = dict(kept)
    network = _network_args(found.get("network_args"), modules)
    if network is not None:
        found["network_args"] = network

    _schedule(found, labels, recipe)
    optimizer = str(found.get("optimizer_type", ""))
    short = optimizer.rpartition(".")[2] if optimizer.startswith(_PACKAGE) else optimizer
    if optimizer and short.lower() in _OPTIMIZERS:
        found["optimizer_type"] = _OPTIMIZERS[short.lower()]
    if "warmup_ratio" in found:
        found["lr_warmup_steps"] = found.pop("warmup_ratio")
        labels["lr_warmup_steps"] = labels.pop("warmup_ratio")

    items = items_of(found.items(), recipe)
    items = {name: Item(labels.get(item.key, item.key), item.value) for name, item in items.items()}
    module = modules[-1] if modules else "networks.lora"
    items.setdefault("network_module", Item("(network_module)", module))
    return items


def _network_args(value: Any, modules: list[str]) -> dict[str, Any] | None:
    """Numbers in lists become one text, as sd-scripts has them; algo and unit say which module it is."""
    if not isinstance(value, Mapping):
        return None
    if "algo" in value:
        modules.append("lycoris.kohya")
    elif "unit" in value:
        modules.append("networks.dylora")
    table = {key: part for key, part in value.items() if not (key == "preset" and part == "")}
    for key in _LISTS:
        if isinstance(table.get(key), list):
            table[key] = ",".join(map(str, table[key]))
    return table


def _schedule(found: dict[str, Any], labels: dict[str, str], recipe: Recipe) -> None:
    """A schedule of that program's own, by its class, with its numbers."""
    typed = found.get("lr_scheduler_type")
    name = str(typed or "").rpartition(".")[2]
    if not str(typed or "").startswith(_PACKAGE) or name not in _SCHEDULES:
        return

    # Its schedules are classes of its own package, which cannot be loaded here; those of the same shape can be
    # named.
    note = f"{_SCHEDULES[name]} is like {name}, which comes with that program"
    recipe.change(labels.pop("lr_scheduler_type"), note)
    del found["lr_scheduler_type"]
    if "lr_scheduler" in found:
        recipe.rest(labels["lr_scheduler"])
    found["lr_scheduler"] = _SCHEDULES[name]
    labels["lr_scheduler"] = "(lr_scheduler_type)"

    label = labels.pop("lr_scheduler_args", "lr_scheduler_args")
    options = found.pop("lr_scheduler_args", None)
    for option, number in options.items() if isinstance(options, Mapping) else ():
        if option == "min_lr":
            recipe.skip(f"{label}: min_lr", f"a rate, {number}, not a share: lr_schedule.min_lr_ratio is a share")
        else:
            recipe.skip(f"{label}: {option}", "this schedule has no such number here")

    # Its restarts are part of the schedule; here rex goes down once.
    if name.startswith("Rex") and "lr_scheduler_num_cycles" in found:
        recipe.skip(labels.pop("lr_scheduler_num_cycles"), "rex does not begin again here")
        del found["lr_scheduler_num_cycles"]


def _without_empty(dataset: Any, recipe: Recipe) -> Any:
    """A dataset with what that program passes on of its subsets."""
    if not isinstance(dataset, Mapping):
        return dataset
    subsets = []
    listed_subsets = dataset.get("subsets")
    for number, subset in enumerate(listed_subsets if isinstance(listed_subsets, list) else []):
        kept = {}
        for name, value in subset.items() if isinstance(subset, Mapping) else ():
            if name in _WINDOW or (not value and name != "image_dir"):
                recipe.rest(f"subsets[{number}].{name}")
            else:
                kept[name] = value
        subsets.append(kept)
    return {**dataset, "subsets": subsets}
