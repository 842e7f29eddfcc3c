"""One door for all recipes: what a file is follows from its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.errors import FileFormatError
from loraloom.recipes.dataset_config import take_dataset_config
from loraloom.recipes.diffusers_scripts import take_diffusers_script
from loraloom.recipes.dreambooth import take_db_config
from loraloom.recipes.dreambooth_concepts import take_concepts
from loraloom.recipes.easy_scripts import take_easy_scripts
from loraloom.recipes.gui import take_gui_file
from loraloom.recipes.lora_sizes import lora_sizes
from loraloom.recipes.metadata import take_metadata
from loraloom.recipes.onetrainer import take_onetrainer
from loraloom.recipes.parsing import Document, flattened, read_document
from loraloom.recipes.recipe import Item, Items, Recipe
from loraloom.recipes.recognising import Evidence, Reader, recognise, refusal
from loraloom.recipes.scripts import Script, read_script
from loraloom.recipes.sd_scripts import dataset_defaults, items_of, take_arguments

__all__ = ["read_recipe"]

_FOR_WHOLE_MODELS = ("train_db.py", "fine_tune.py", "sdxl_train.py")


def read_recipe(path: Path, *, only_lora: bool = False) -> Recipe:
    """A recipe of another program, or of a LoRA file, in our settings.

    Whose file it is gets decided first (:mod:`~loraloom.recipes.recognising`). Raises MissingFileError, or
    FileFormatError (with line and column where there are some) for what is not a recipe, or one that is not read;
    values that do not fit wait in ``problems`` until :meth:`Recipe.finished`.
    """
    document = read_document(path)
    if document.kind == "lora":
        return _of_lora(path)
    if only_lora:
        raise FileFormatError(
            f"{path} is not a LoRA file", Sentence(Action.IMPORT_RECIPE, " reads recipes of other programs")
        )

    recipe = Recipe(path, "")
    script, problem = _script_of(document, recipe)
    # A refusal has to say whose file it is, so that is decided before anything is taken over.
    evidence = Evidence(document, script)
    program = recognise(evidence)
    if program is None and problem is not None:
        raise problem
    if program is None or program.reader is None:
        raise refusal(evidence, program)

    recipe.program = program.name
    if script is None:
        _DATA_READERS[program.reader](document.data, recipe)
        return recipe

    # What a script works out, calls besides or never uses is named, so that nothing seems to have been read.
    for name in dict.fromkeys(script.computed):
        recipe.skip(f"--{name}", "computed by the script while it runs")
    for command in script.others:
        recipe.skip(command, "another command, no part of this training: put a second training into a file of its own")
    for name in script.unused:
        recipe.skip(f"${name}", "a variable of the script that no argument uses")
    _SCRIPT_READERS[program.reader](script, recipe)
    return recipe


def _script_of(document: Document, recipe: Recipe) -> tuple[Script | None, FileFormatError | None]:
    """The command line in a text, and what is wrong with a text that is neither data nor one."""
    if document.kind != "script":
        return None, document.problem
    try:
        return read_script(document.text, document.path, recipe), None
    except FileFormatError as error:
        return None, error


def _of_lora(path: Path) -> Recipe:
    from loraloom.formats.foreign import what_it_is
    from loraloom.formats.lora_keys import lora_keys
    from loraloom.formats.tensors import open_tensors

    recipe = Recipe(path, "a LoRA file's metadata")
    tensors = open_tensors(path)
    infos = {key: tensors.info(key) for key in tensors}
    told = any(key.startswith("ss_") for key in tensors.metadata)
    if not told and lora_keys(infos, tensors.metadata) is None:
        raise FileFormatError(f"{path} is not a LoRA file: it {what_it_is(infos)}", "give the file of a LoRA")
    take_metadata(dict(tensors.metadata), recipe, sizes=lambda: lora_sizes(tensors))
    return recipe


def _take_sd_scripts_command(script: Script, recipe: Recipe) -> None:
    items = items_of(script.pairs, recipe)
    for name, item in items.items():
        if item.key in script.labels:
            items[name] = Item(script.labels[item.key], item.value)
    if script.program in ("fine_tune.py", "sdxl_train.py"):
        items.setdefault("train_text_encoder", Item("(train_text_encoder)", False))
    elif "textual_inversion" in script.program:
        recipe.problem("method", f"{script.program} trains an embedding, which is not offered")
    take_arguments(items, recipe, whole=script.program if script.program in _FOR_WHOLE_MODELS else "")
    computed = {f"({name})" for name in script.computed}
    recipe.changed = [
        (
            key,
            note.replace("not given", "computed by the script, so not known here; instead", 1)
            if key in computed
            else note,
        )
        for key, note in recipe.changed
    ]


def _take_sd_scripts_file(data: Mapping[str, Any], recipe: Recipe) -> None:
    take_arguments(items_of(flattened(data), recipe), recipe)


def _take_dataset_file(data: Mapping[str, Any], recipe: Recipe) -> None:
    rest = {key: value for key, value in data.items() if key not in ("general", "datasets")}
    items: Items = items_of(flattened(rest), recipe)
    take_dataset_config(data, recipe, outer=items, source=recipe.source)
    take_arguments(items, recipe, defaults=bool(rest))
    dataset_defaults(recipe)


def _take_concepts_list(data: Any, recipe: Recipe) -> None:
    take_concepts(data, recipe, source=recipe.source)


_SCRIPT_READERS: Mapping[Reader, Callable[[Script, Recipe], None]] = {
    "sd-scripts": _take_sd_scripts_command,
    "diffusers": take_diffusers_script,
}
_DATA_READERS: Mapping[Reader, Callable[[Any, Recipe], None]] = {
    "concepts list": _take_concepts_list,
    "OneTrainer": take_onetrainer,
    "db_config": take_db_config,
    "Easy Scripts": take_easy_scripts,
    "dataset file": _take_dataset_file,
    "GUI": take_gui_file,
    "sd-scripts": _take_sd_scripts_file,
}
