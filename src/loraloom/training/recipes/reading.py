"""One door for all recipes: what a file is follows from its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraloom.errors import FileFormatError
from loraloom.training.recipes.dataset_config import is_dataset_config, take_dataset_config
from loraloom.training.recipes.dreambooth import is_concepts_list, is_db_config, take_concepts, take_db_config
from loraloom.training.recipes.gui import is_gui_file, take_gui_file
from loraloom.training.recipes.metadata import take_metadata
from loraloom.training.recipes.names import SPELLINGS, TRAIN_NETWORK_ARGUMENTS
from loraloom.training.recipes.onetrainer import is_onetrainer, take_onetrainer
from loraloom.training.recipes.parsing import Document, flattened, read_document
from loraloom.training.recipes.recipe import Item, Items, Recipe
from loraloom.training.recipes.scripts import read_script
from loraloom.training.recipes.sd_scripts import dataset_defaults, items_of, take_arguments

__all__ = ["read_recipe"]

_FOR_WHOLE_MODELS = ("train_db.py", "fine_tune.py", "sdxl_train.py")


def read_recipe(path: Path, *, only_lora: bool = False) -> Recipe:
    """A recipe of another program, or of a LoRA file, in our settings.

    Raises MissingFileError or FileFormatError (with line and column where there are some) for what is no recipe;
    values that do not fit wait in ``problems`` until :meth:`Recipe.finished`.
    """
    document = read_document(path)
    if document.kind == "lora":
        return _of_lora(path)
    if only_lora:
        raise FileFormatError(f"{path} is no LoRA file", "loraloom train --import reads recipes of other programs")
    if document.kind == "script":
        return _of_script(document)
    return _of_data(document)


def _of_lora(path: Path) -> Recipe:
    from loraloom.formats.tensors import open_tensors

    recipe = Recipe(path, "a LoRA file's metadata")
    take_metadata(dict(open_tensors(path).metadata), recipe)
    return recipe


def _of_script(document: Document) -> Recipe:
    recipe = Recipe(document.path, "a command line or script")
    script = read_script(document.text, document.path, recipe)
    for name in dict.fromkeys(script.computed):
        recipe.skip(f"--{name}", "computed by the script while it runs")
    for name in script.unused:
        recipe.skip(f"${name}", "a variable of the script that no argument uses")
    items = items_of(script.pairs, recipe)
    for name, item in items.items():
        if item.key in script.labels:
            items[name] = Item(script.labels[item.key], item.value)
    if script.program in ("fine_tune.py", "sdxl_train.py"):
        items.setdefault("train_text_encoder", Item("(train_text_encoder)", False))
    elif "textual_inversion" in script.program:
        recipe.problem("method", f"{script.program} trains an embedding, which is not offered")
    take_arguments(items, recipe, whole=script.program if script.program in _FOR_WHOLE_MODELS else "")
    return recipe


def _of_data(document: Document) -> Recipe:
    path, data = document.path, document.data
    if is_concepts_list(data):
        recipe = Recipe(path, "sd_dreambooth_extension's concepts list")
        take_concepts(data, recipe, source=path)
        return recipe
    if not isinstance(data, Mapping):
        raise FileFormatError(f"{path} is a list, but not one of concepts", "concepts have an instance_data_dir each")
    if is_onetrainer(data):
        recipe = Recipe(path, "OneTrainer")
        take_onetrainer(data, recipe)
        return recipe
    if _is_own(data):
        raise FileFormatError(f"{path} is a settings file of this program already", f"loraloom train {path}")
    if is_db_config(data):
        recipe = Recipe(path, "sd_dreambooth_extension's db_config.json")
        take_db_config(data, recipe)
    elif is_dataset_config(data):
        recipe = Recipe(path, "sd-scripts' dataset file")
        rest = {key: value for key, value in data.items() if key not in ("general", "datasets")}
        items: Items = items_of(flattened(rest), recipe)
        take_dataset_config(data, recipe, outer=items, source=path)
        take_arguments(items, recipe, defaults=bool(rest))
        dataset_defaults(recipe)
    elif is_gui_file(data):
        recipe = Recipe(path, "kohya_ss' GUI")
        take_gui_file(data, recipe)
    else:
        recipe = Recipe(path, "sd-scripts")
        entries = flattened(data)
        if not entries:
            raise FileFormatError(f"{path} holds no settings", "check that it is the right file")
        _require_some_known(path, dict(entries))
        take_arguments(items_of(entries, recipe), recipe)
    return recipe


def _is_own(data: Mapping[str, Any]) -> bool:
    dataset = data.get("dataset")
    return isinstance(dataset, Mapping) and bool({"folder", "concepts"} & set(dataset))


def _require_some_known(path: Path, entries: Mapping[str, Any]) -> None:
    known = {*TRAIN_NETWORK_ARGUMENTS, *SPELLINGS}
    if not any(str(key).replace("-", "_") in known for key in entries):
        examples = ", ".join(list(map(str, entries))[:3])
        raise FileFormatError(
            f"{path} is no recipe that is known here: its keys ({examples}) belong to none of them",
            "those of sd-scripts, kohya_ss, sd_dreambooth_extension, OneTrainer and LoRA files can be read",
        )
