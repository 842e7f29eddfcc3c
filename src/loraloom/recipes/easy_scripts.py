"""LoRA_Easy_Training_Scripts: the TOML that its window saves, a section for each panel.

``[[subsets]]`` are the folders; a panel's ``args`` go to sd-scripts as arguments, its ``dataset_args`` into the dataset
file. Source: the program that turns both into what sd-scripts reads (utils/validation.py of its backend): what is
empty, 0 or false is left out there, and the rest is sd-scripts' own, defaults too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.plain_data import shown
from loraloom.recipes.dataset_config import take_dataset_config
from loraloom.recipes.recipe import Item, Items, Recipe, listed
from loraloom.recipes.rows import Reading, Row, by_key, says_nothing, without_setting
from loraloom.recipes.sd_scripts import items_of, take_arguments

__all__ = ["ARGUMENTS", "WINDOW", "is_easy_scripts", "take_easy_scripts"]

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
_PARTS = ("args", "dataset_args")


def is_easy_scripts(data: Any) -> bool:
    """Whether parsed TOML is what that window saves: sections in sections called args, and subsets without datasets."""
    if not isinstance(data, Mapping):
        return False
    tables = [table for key, table in data.items() if _is_panel(key, table)]
    has_parts = any(set(_PARTS) & set(table) for table in tables)
    return has_parts or (isinstance(data.get("subsets"), list) and "datasets" not in data)


@dataclass
class _Window(Reading):
    """What the window saved while it is read; ``left`` are the sections, then the arguments of all panels."""

    arguments: list[tuple[str, Item]] = field(default_factory=list)
    """The ``args`` of all panels by their names, with ``panel.args.name`` as their keys."""
    general: dict[str, Any] = field(default_factory=dict)
    """The ``dataset_args`` of all panels."""
    labels: dict[str, str] = field(default_factory=dict)
    """Where these stand, by the key that they have in a dataset file."""
    module: str = "networks.lora"


def take_easy_scripts(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate such a file into ``recipe``."""
    file = _Window(recipe, {str(key): Item(str(key), value) for key, value in data.items()})
    datasets = _datasets(file)
    for name in [name for name, item in file.left.items() if _is_panel(name, item.value)]:
        _panel(name, file)
    file.walk(WINDOW)
    for item in file.left.values():
        count = len(item.value) if isinstance(item.value, Mapping) else 1
        recipe.skip(item.key, f"no panel that is known; it holds {count}")
        recipe.unknown.append(item.key)

    items = _items(file)
    config = {"general": file.general, "datasets": datasets}
    take_dataset_config(config, recipe, outer=items, source=recipe.source)
    take_arguments(items, recipe)
    added = "" if "datasets" in data else "datasets[0]."
    recipe.rename(lambda key: file.labels.get(key, key.removeprefix(added)))


# -- the sections of the file --------------------------------------------------------------------------------------


def _is_panel(name: Any, table: Any) -> bool:
    return str(name).endswith("_args") and isinstance(table, Mapping)


def _datasets(file: _Window) -> list[Any]:
    """The folders, in subsets as the window saves them, or in datasets as sd-scripts has them."""
    datasets, subsets = file.take("datasets"), file.take("subsets")
    if datasets is not None and isinstance(datasets.value, list):
        if subsets is not None:
            file.recipe.change(subsets.key, f"{datasets.key} counts")
        return [_passed_on(dataset, f"datasets[{number}].", file) for number, dataset in enumerate(datasets.value)]
    if datasets is not None:
        file.recipe.problem("", f"datasets = {shown(datasets.value)} is not a list of tables")
    return [_passed_on({"subsets": None if subsets is None else subsets.value}, "", file)]


def _passed_on(dataset: Any, place: str, file: _Window) -> Any:
    """A dataset with what that program passes on of its subsets."""
    if not isinstance(dataset, Mapping):
        return dataset
    found = dataset.get("subsets")
    tables = found if isinstance(found, list) else []
    subsets = [_without_idle(table, f"{place}subsets[{number}]", file.recipe) for number, table in enumerate(tables)]
    return {**dataset, "subsets": subsets}


def _without_idle(subset: Any, place: str, recipe: Recipe) -> Any:
    """A subset without what is empty or off, or belongs to the window. The folder may be missing, but not be idle."""
    if not isinstance(subset, Mapping):
        return subset
    idle = [name for name, value in subset.items() if name in _ITS_OWN or (not value and name != "image_dir")]
    for name in idle:
        recipe.rest(f"{place}.{name}")
    return {name: value for name, value in subset.items() if name not in idle}


def _panel(name: str, file: _Window) -> None:
    """The two parts of a panel. A family of models that is not trained has none that count."""
    recipe, table = file.recipe, file.left[name].value
    for key, value in _entries(name, table, "args", recipe):
        file.arguments.append((key, Item(f"{name}.args.{key}", value)))
    for key, value in _entries(name, table, "dataset_args", recipe):
        label, place = f"{name}.dataset_args.{key}", f"general.{key}"
        if not value or (key == "max_token_length" and value == 75):
            recipe.rest(label)
            continue
        if place in file.labels:
            recipe.change(file.labels[place], _again(label))
        file.general[key], file.labels[place] = value, label
    for key in table:
        if key not in _PARTS:
            recipe.skip(f"{name}.{key}", "no part of a panel that is known")
            recipe.unknown.append(f"{name}.{key}")
    if name not in by_key(WINDOW):
        del file.left[name]


def _entries(panel: str, table: Mapping[str, Any], part: str, recipe: Recipe) -> list[tuple[str, Any]]:
    """The settings in one of the two parts of a panel."""
    found = table.get(part, {})
    if isinstance(found, Mapping):
        return [(str(name), value) for name, value in found.items()]
    recipe.problem("", f"{panel}.{part} = {shown(found)} is not a table")
    return []


def _again(label: str) -> str:
    return f"given again as {label}; the last one counts"


def _train_mode(row: Row, file: _Window) -> None:
    """LoRAs or embeddings, in a section of its own."""
    item = file.left.pop(row.key)
    table = item.value if isinstance(item.value, Mapping) else {}
    name, key = (table.get(row.key), f"{row.key}.{row.key}") if table else (item.value, row.key)
    if name not in (None, "lora", {}):
        text = f"train_mode = {name}: LoRAs are trained here, not embeddings; method=adapter"
        file.recipe.problem(row.ours, text)
    elif not table or row.key in table:
        file.recipe.rest(key)
    for other in table:
        if other != row.key:
            file.recipe.skip(f"{row.key}.{other}", "no part of this section that is known")
            file.recipe.unknown.append(f"{row.key}.{other}")


def _other_family(row: Row, file: _Window) -> None:
    """The window saves the panels of all families; one that is filled in is another family's training."""
    item = file.left[row.key]
    if not isinstance(item.value, Mapping):
        return
    del file.left[row.key]
    if not item.value.get("args"):
        return
    text = f"{row.key} is filled in: that family of models is not trained here (SD 1, 2 and XL are)"
    file.recipe.problem("", text)
    theirs = [entry for entry in file.arguments if entry[1].key.startswith(f"{row.key}.")]
    for entry in theirs:
        file.arguments.remove(entry)
        file.recipe.skip(entry[1].key, row.remark)


# -- the arguments of the panels -----------------------------------------------------------------------------------


def _items(file: _Window) -> Items:
    """The panels' args as sd-scripts' arguments."""
    file.left = {}
    for name, item in file.arguments:
        # The window writes every field, also those that are off: what is left out there says nothing here.
        if not item.value:
            file.recipe.rest(item.key)
            continue
        if name in file.left:
            file.recipe.change(file.left[name].key, _again(item.key))
        file.left[name] = item
    file.walk(ARGUMENTS)

    labels = {name: item.key for name, item in file.left.items()}
    items = items_of(((name, item.value) for name, item in file.left.items()), file.recipe, labels)
    items.setdefault("network_module", Item("(network_module)", file.module))
    return items


def _frozen_down(row: Row, file: _Window) -> None:
    file.module = "networks.lora_fa"
    file.change(row.key, row.remark)


def _no_setting(row: Row, file: _Window) -> None:
    file.skip(row.key, row.remark)


def _network_args(row: Row, file: _Window) -> None:
    """Numbers in lists become one text, as sd-scripts has them; algo and unit say which module it is."""
    item = file.left[row.key]
    if not isinstance(item.value, Mapping):
        return
    if "algo" in item.value:
        file.module = "lycoris.kohya"
    elif "unit" in item.value:
        file.module = "networks.dylora"
    table = {key: part for key, part in item.value.items() if not (key == "preset" and part == "")}
    for key in _LISTS:
        if isinstance(table.get(key), list):
            table[key] = ",".join(map(str, table[key]))
    file.left[row.key] = Item(item.key, table)


def _schedule(row: Row, file: _Window) -> None:
    """A schedule of that program's own, by its class, with its numbers."""
    typed = str(file.left[row.key].value)
    name = typed.rpartition(".")[2]
    if not typed.startswith(_PACKAGE) or name not in _SCHEDULES:
        return

    # Its schedules are classes of its own package, which cannot be loaded here; those of the same shape can be
    # named.
    file.change(row.key, f"{_SCHEDULES[name]} is like {name}, which comes with that program")
    if "lr_scheduler" in file.left:
        file.recipe.rest(file.left["lr_scheduler"].key)
    file.left["lr_scheduler"] = Item(f"({row.key})", _SCHEDULES[name])

    options = file.take("lr_scheduler_args")
    if options is not None:
        _numbers_of_schedule(options, file.recipe)

    # Its restarts are part of the schedule; here rex goes down once.
    if name.startswith("Rex"):
        file.skip("lr_scheduler_num_cycles", "rex does not begin again here")


def _numbers_of_schedule(options: Item, recipe: Recipe) -> None:
    """The arguments of a schedule that is only like the one that is taken instead."""
    no_such = "this schedule has no such number here"
    if not isinstance(options.value, Mapping):
        recipe.skip(options.key, no_such)
        return
    for option, number in options.value.items():
        is_rate = option == "min_lr"
        reason = f"a rate, {number}, not a share: lr_schedule.min_lr_ratio is a share" if is_rate else no_such
        recipe.skip(f"{options.key}: {option}", reason)


def _optimizer(row: Row, file: _Window) -> None:
    """One that comes with that program has a name here."""
    item = file.left[row.key]
    short = str(item.value).removeprefix(_PACKAGE)
    short = short.rpartition(".")[2] if short != str(item.value) else short
    if short.lower() in _OPTIMIZERS:
        file.left[row.key] = Item(item.key, _OPTIMIZERS[short.lower()])


def _warmup_ratio(row: Row, file: _Window) -> None:
    """A share of the steps, which sd-scripts writes where it writes steps."""
    item = file.left.pop(row.key)
    steps = file.left.get("lr_warmup_steps")
    if steps is not None:
        file.recipe.change(steps.key, f"{item.key} counts instead")
    file.left["lr_warmup_steps"] = item


# -- the tables ----------------------------------------------------------------------------------------------------

_ITS_OWN = listed("save_toml save_toml_location easy_name name sdxl")
_OTHER_FAMILIES = "flux_args sd3_args anima_args chroma_args lumina_args"

WINDOW = (
    Row("train_mode", "method", _train_mode, "LoRAs are trained here, not embeddings"),
    *without_setting("belongs to another family of models", _OTHER_FAMILIES, _other_family),
)
"""Sections that are more than a panel of settings."""

ARGUMENTS = (
    *without_setting("of the window itself", " ".join(_ITS_OWN), says_nothing),
    Row("fa", "adapter.kind", _frozen_down, "see adapter.kind"),
    *without_setting(
        "tags are counted in the LoRA's metadata in any case", "tag_occurrence tag_file_location", _no_setting
    ),
    Row("network_args", "adapter.kind", _network_args, "the settings of the adapter, one by one"),
    Row("lr_scheduler_type", "lr_schedule.name", _schedule, "the class of a schedule"),
    Row("optimizer_type", "optimizer.name", _optimizer),
    Row("warmup_ratio", "lr_schedule.warmup_steps", _warmup_ratio),
)
"""Arguments that are not sd-scripts', or not quite."""
