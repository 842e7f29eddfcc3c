"""sd-scripts' dataset files: [general], [[datasets]] and [[datasets.subsets]], of which the lower level wins.

Source: the schema that sd-scripts checks these files with (library/config_util.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraloom.errors import FileFormatError
from loraloom.recipes.dataset_subsets import FOLDER, OVERRIDDEN, DatasetFile, Subset, take_subsets
from loraloom.recipes.recipe import Item, Items, Recipe, is_nothing, resolved
from loraloom.recipes.rows import Row, by_key, says_nothing

__all__ = ["is_dataset_config", "take_dataset_config"]

_OTHER_NAMES = {"batch_size": "train_batch_size"}


def is_dataset_config(data: Any) -> bool:
    """Whether parsed data is a dataset file."""
    if not isinstance(data, Mapping):
        return False
    datasets = data.get("datasets")
    tables = [table for table in datasets if isinstance(table, Mapping)] if isinstance(datasets, list) else []
    return set(data) == {"general"} or any("subsets" in table for table in tables)


def take_dataset_config(data: Any, recipe: Recipe, *, outer: Items, source: Path) -> None:
    """Translate a dataset file into concepts. ``outer``: the run's own arguments, which count where the file is silent.

    Arguments that the file overrules are taken out of ``outer``. Raises FileFormatError where a part is no table.
    """
    if not is_dataset_config(data):
        recipe.problem("dataset.folder", f"{source} holds no [[datasets]]")
        return
    file = DatasetFile(recipe, {}, source, outer)
    _general(data, file)
    subsets = list(_subsets(data.get("datasets"), file))
    file.subsets = [subset for subset in subsets if subset.concept]
    empty = [subset for subset in subsets if not subset.concept]
    if file.subsets:
        for subset in empty:
            _leave_out(subset.dataset, subset.left, recipe)
        take_subsets(file)
    else:
        _without_concepts(empty, file)


# -- the levels of a file ------------------------------------------------------------------------------------------


def _general(data: Mapping[str, Any], file: DatasetFile) -> None:
    """What holds for all datasets of the file, and goes before the run's own arguments."""
    recipe, outer = file.recipe, file.outer
    file.left = _named("general", data.get("general") or {}, file)
    for name, item in file.left.items():
        if name in outer:
            recipe.change(outer.pop(name).key, f"{item.key} of {file.source.name} counts instead")
    for key in data:
        if key not in ("general", "datasets") and file.source != recipe.source:
            recipe.skip(key, "no part of a dataset file")


def _named(place: str, entries: Any, file: DatasetFile) -> Items:
    """A table's entries by sd-scripts' names. Of one that is given under two names the last counts."""
    if not isinstance(entries, Mapping):
        hint = "settings are written name = value below [general]"
        raise FileFormatError(f"{file.source}: {place} is not a table", hint)
    items: Items = {}
    for key, value in entries.items():
        name = _OTHER_NAMES.get(str(key), str(key))
        if name == "subsets":
            continue
        if name in items:
            file.recipe.change(items[name].key, f"given again as {place}.{key}; the last one counts")
        items[name] = Item(f"{place}.{key}", value)
    return items


def _subsets(datasets: Any, file: DatasetFile) -> Iterator[Subset]:
    """Every subset with a folder; of a dataset without any, its one subset if it has one."""
    for number, dataset in enumerate(datasets if isinstance(datasets, list) else []):
        place = f"datasets[{number}]"
        if not isinstance(dataset, Mapping):
            file.recipe.problem("", f"{place} is not a table")
            continue
        above = _named(place, dataset, file)
        listed = dataset.get("subsets")
        tables = listed if isinstance(listed, list) else []
        if any(_names_folder(above, entries) for entries in tables):
            yield from _with_folders(place, above, tables, file)
        else:
            yield from _without_folders(place, above, tables, file)


def _names_folder(above: Items, entries: Any) -> bool:
    if not isinstance(entries, Mapping):
        return False
    own = entries.get("image_dir", above["image_dir"].value if "image_dir" in above else None)
    return not is_nothing(own)


def _with_folders(place: str, above: Items, tables: Sequence[Any], file: DatasetFile) -> Iterator[Subset]:
    recipe, seen = file.recipe, set[str]()
    for index, entries in enumerate(tables):
        label = f"{place}.subsets[{index}]"
        if not isinstance(entries, Mapping):
            recipe.problem("", f"{label} is not a table")
            continue
        own = {**above, **_named(label, entries, file)}
        folder = own.get("image_dir")
        # Without a folder the entries describe no picture, so they can only be reported.
        if folder is None or is_nothing(folder.value):
            _leave_out(label, own, recipe)
            continue

        path = resolved(str(folder.value), file.folders)
        for name, item in above.items():
            if own[name] is not item and all(item.key != key for key, _ in recipe.changed):
                recipe.change(item.key, OVERRIDDEN)
        # sd-scripts takes a folder once in a dataset, and passes over the second.
        if path in seen:
            reason = f"{folder.value} is in this dataset already; the first counts, as in sd-scripts"
            for item in own.values():
                if item.key.startswith(label):
                    recipe.skip(item.key, reason)
            continue

        seen.add(path)
        file.map(folder, FOLDER.ours, path)
        yield Subset(recipe, own, file, label, place, {"folder": path})


def _without_folders(place: str, above: Items, tables: Sequence[Any], file: DatasetFile) -> Iterator[Subset]:
    """A dataset of which no subset names a folder. A form that nobody has filled in has one such subset."""
    recipe = file.recipe
    if len(tables) == 1 and isinstance(tables[0], Mapping):
        label = f"{place}.subsets[0]"
        own = {**above, **_named(label, tables[0], file)}
        for name, item in above.items():
            if own[name] is not item:
                recipe.change(item.key, OVERRIDDEN)
        yield Subset(recipe, own, file, label, place)
        return
    for index, entries in enumerate(tables):
        label = f"{place}.subsets[{index}]"
        if isinstance(entries, Mapping):
            _leave_out(label, _named(label, entries, file), recipe)
        else:
            recipe.problem("", f"{label} is not a table")
    for item in above.values():
        recipe.skip(item.key, "no subset of this dataset names a folder of pictures")


def _leave_out(label: str, entries: Items, recipe: Recipe) -> None:
    """Account for a subset without a folder, which sd-scripts passes over too."""
    for name, item in entries.items():
        if not item.key.startswith(label):
            continue
        if name == "image_dir":
            recipe.rest(item.key)
        else:
            recipe.skip(item.key, "the subset names no image_dir, so it is left out, as in sd-scripts")


def _without_concepts(empty: list[Subset], file: DatasetFile) -> None:
    """A file may hold only what is common to all, and leave the folders to the command line."""
    if len(empty) == 1:
        file.recipe.known_of_required["dataset.folder"] = f"{empty[0].place} names no image_dir"
        rows = by_key(_WITHOUT_FOLDER)
        for name in list(empty[0].left):
            row = rows.get(name, Row(name, "", _for_the_run))
            row.how(row, empty[0])
    else:
        for subset in empty:
            _leave_out(subset.dataset, subset.left, file.recipe)
        file.recipe.problem("dataset.folder", f"{file.source}: no subset names an image_dir")
    for name, item in file.left.items():
        if name in file.outer:
            file.recipe.change(item.key, f"{file.outer[name].key} counts instead")
        else:
            file.outer[name] = item


def _for_the_run(row: Row, subset: Subset) -> None:
    """What the only subset of a file says without a folder: it holds for the dataset, whose folder is asked for."""
    item, outer = subset.left.pop(row.key), subset.file.outer
    if row.key in outer:
        subset.recipe.change(outer[row.key].key, f"{item.key} of {subset.file.source.name} counts instead")
    outer[row.key] = item


def _reported(row: Row, subset: Subset) -> None:
    subset.skip(row.key, row.remark)


_WITHOUT_FOLDER = (
    Row("image_dir", "", says_nothing),
    Row("is_reg", "", _reported, "regularization images have a folder of their own: dataset.regularization_folder"),
    Row(
        "class_tokens",
        "",
        _reported,
        "the caption of pictures without one is the caption of an entry of dataset.concepts",
    ),
)
"""Of a subset without a folder: what cannot hold for all pictures."""
