"""sd-scripts' dataset files: [general], [[datasets]] and [[datasets.subsets]], of which the lower level wins.

Source: the schema that sd-scripts checks these files with (library/config_util.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loraloom.errors import FileFormatError
from loraloom.plain_data import shown
from loraloom.recipes.arguments import take_one
from loraloom.recipes.names import marked, reason_for, unknown
from loraloom.recipes.recipe import Item, Items, Mapped, Recipe, _coerced, is_nothing, resolved

__all__ = ["is_dataset_config", "take_dataset_config"]

_CONCEPT_FIELDS = {
    "num_repeats": "repeats",
    "is_reg": "is_regularization",
    "class_tokens": "caption",
    "flip_aug": "flip",
    "random_crop": "random_crop",
    "color_aug": "color_augmentation",
}
_OTHER_NAMES = {"batch_size": "train_batch_size"}
_HANDLED = {"image_dir", "subsets", "alpha_mask", "conditioning_data_dir", "metadata_file", "resolution"}


@dataclass
class _Subset:
    """One subset with what holds for it: its own entries over those of its dataset."""

    place: str
    entries: Items
    dataset: str
    concept: dict[str, Any] = field(default_factory=dict)


def is_dataset_config(data: Any) -> bool:
    """Whether parsed data is a dataset file."""
    if not isinstance(data, Mapping):
        return False
    datasets = data.get("datasets")
    tables = [table for table in datasets if isinstance(table, Mapping)] if isinstance(datasets, list) else []
    return set(data) == {"general"} or any("subsets" in table for table in tables)


def take_dataset_config(data: Any, recipe: Recipe, *, outer: Items, source: Path) -> None:
    """Translate a dataset file into concepts. ``outer``: the run's own arguments, which count where the file is silent.

    Arguments that the file overrules are taken out of ``outer``.
    """
    if not is_dataset_config(data):
        recipe.problem("dataset.folder", f"{source} holds no [[datasets]]")
        return
    general = _general(data, recipe, outer, source)
    found = list(_subsets(data.get("datasets"), recipe, (source.absolute().parent, Path.cwd())))
    empty = [subset for subset in found if not subset.concept]
    subsets = [subset for subset in found if subset.concept]
    if subsets:
        for subset in empty:
            _leave_out(subset.dataset, subset.entries, recipe)
        _take_subsets(subsets, general, outer, recipe)
        return

    # A file may hold only what is common to all, and leave the folders to the command line.
    if len(empty) == 1:
        _take_as_defaults(empty[0], outer, recipe)
    else:
        recipe.problem("dataset.folder", f"{source}: no subset names an image_dir")
    for name, item in general.items():
        outer.setdefault(name, item)


def _general(data: Mapping[str, Any], recipe: Recipe, outer: Items, source: Path) -> Items:
    """What holds for all datasets of the file, and goes before the run's own arguments."""
    general = _named("general", data.get("general") or {})
    for name, item in general.items():
        if name in outer:
            recipe.change(outer.pop(name).key, f"{item.key} of {source.name} counts instead")
    for key in set(data) - {"general", "datasets"}:
        if source != recipe.source:
            recipe.skip(key, "no part of a dataset file")
    return general


def _take_subsets(subsets: list[_Subset], general: Items, outer: Items, recipe: Recipe) -> None:
    """A concept for each subset, then what holds for all of them; what is left of ``general`` goes to ``outer``."""
    base = {**{name: item for name, item in outer.items() if name in _CONCEPT_FIELDS}, **general}
    told: set[str] = set()
    _resolutions(subsets, recipe, told)
    for subset in subsets:
        _take_subset(subset, base, recipe, told)
    recipe.settings.setdefault("dataset", {})["concepts"] = [subset.concept for subset in subsets]
    _preservation(subsets, base, recipe, told)
    _once_for_all(subsets, {**outer, **general}, recipe, told)
    outer |= {name: item for name, item in general.items() if item.key not in told}


def _named(place: str, entries: Any) -> Items:
    if not isinstance(entries, Mapping):
        raise FileFormatError(f"{place} is not a table", "settings are written name = value below [general]")
    return {
        _OTHER_NAMES.get(str(name), str(name)): Item(f"{place}.{name}", value)
        for name, value in entries.items()
        if name != "subsets"
    }


def _subsets(datasets: Any, recipe: Recipe, folders: tuple[Path, ...]) -> Iterator[_Subset]:
    for number, dataset in enumerate(datasets if isinstance(datasets, list) else []):
        place = f"datasets[{number}]"
        if not isinstance(dataset, Mapping):
            recipe.problem("", f"{place} is not a table")
            continue

        above = _named(place, dataset)
        listed = dataset.get("subsets")
        tables = listed if isinstance(listed, list) else []
        if any(_names_folder(above, entries) for entries in tables):
            yield from _with_folders(place, above, tables, recipe, folders)
        else:
            yield from _without_folders(place, above, tables, recipe)


def _with_folders(
    place: str, above: Items, tables: Sequence[Any], recipe: Recipe, folders: tuple[Path, ...]
) -> Iterator[_Subset]:
    """The subsets of a dataset, whose own entries are ``above`` theirs."""
    seen = set[str]()
    for index, entries in enumerate(tables):
        label = f"{place}.subsets[{index}]"
        if not isinstance(entries, Mapping):
            recipe.problem("", f"{label} is not a table")
            continue
        own = {**above, **_named(label, entries)}
        folder = own.get("image_dir")
        # Without a folder the entries describe no picture, so they can only be reported.
        if folder is None or is_nothing(folder.value):
            _leave_out(label, own, recipe)
            continue

        path = resolved(str(folder.value), folders)
        for name, item in above.items():
            if name in entries and own[name] is not item and (item.key, "") not in recipe.changed:
                _once(recipe, item.key, "a subset says something else, which counts there")
        if path in seen:
            _pass_over_folder(label, own, folder, recipe)
            continue
        seen.add(path)
        recipe.mapped.append(Mapped(folder.key, "dataset.concepts[].folder", path))
        yield _Subset(label, own, place, {"folder": path})


def _pass_over_folder(label: str, entries: Items, folder: Item, recipe: Recipe) -> None:
    """sd-scripts takes a folder once in a dataset, and passes over the second."""
    for item in entries.values():
        if item.key.startswith(label):
            recipe.skip(item.key, f"{folder.value} is in this dataset already; the first counts, as in sd-scripts")


def _names_folder(above: Items, entries: Any) -> bool:
    if not isinstance(entries, Mapping):
        return False
    own = entries.get("image_dir", above["image_dir"].value if "image_dir" in above else None)
    return not is_nothing(own)


def _without_folders(place: str, above: Items, tables: Sequence[Any], recipe: Recipe) -> Iterator[_Subset]:
    """A dataset of which no subset names a folder. A form that nobody has filled in has one such subset."""
    if len(tables) == 1 and isinstance(tables[0], Mapping):
        yield _Subset(f"{place}.subsets[0]", {**above, **_named(f"{place}.subsets[0]", tables[0])}, place)
        return
    for index, entries in enumerate(tables):
        label = f"{place}.subsets[{index}]"
        if isinstance(entries, Mapping):
            _leave_out(label, _named(label, entries), recipe)
        else:
            recipe.problem("", f"{label} is not a table")
    for item in above.values():
        recipe.skip(item.key, "no subset of this dataset names a folder of pictures")


def _leave_out(label: str, entries: Items, recipe: Recipe) -> None:
    """Account for a subset without a folder, which sd-scripts passes over too."""
    for name, item in entries.items():
        if name == "image_dir":
            recipe.rest(item.key)
        elif item.key.startswith(label):
            recipe.skip(item.key, "the subset names no image_dir, so it is left out, as in sd-scripts")


def _take_as_defaults(subset: _Subset, outer: Items, recipe: Recipe) -> None:
    """The only subset of a file names no folder: what it says holds for the dataset, whose folder is asked for."""
    recipe.known_of_required["dataset.folder"] = f"{subset.place} names no image_dir"
    for name, item in subset.entries.items():
        if name == "image_dir":
            recipe.rest(item.key)
        elif name == "is_reg":
            recipe.skip(item.key, "regularization images have a folder of their own: dataset.regularization_folder")
        elif name == "class_tokens":
            recipe.skip(item.key, "the caption of pictures without one is the caption of an entry of dataset.concepts")
        else:
            outer[name] = item


def _once(recipe: Recipe, key: str, note: str) -> None:
    if all(key != known for known, _ in recipe.changed):
        recipe.change(key, note)


def _resolutions(subsets: list[_Subset], recipe: Recipe, told: set[str]) -> None:
    """One resolution for all becomes the dataset's; several become those of the concepts."""
    found: Items = {}
    for subset in subsets:
        item = subset.entries.get("resolution")
        if item is not None and not is_nothing(item.value):
            found[item.key] = item

    # Each entry is mapped once, although a dataset's own stands in every one of its subsets.
    values = {str(item.value) for item in found.values()}
    for number, item in enumerate(found.values()):
        told.add(item.key)
        if number == 0:
            recipe.set("dataset.resolution", item.value, item.key)
        else:
            path = "dataset.concepts[].resolutions" if len(values) > 1 else "dataset.resolution"
            recipe.mapped.append(Mapped(item.key, path, item.value))

    for subset in subsets if len(values) > 1 else []:
        item = subset.entries.get("resolution")
        if item is not None and item.key in found:
            subset.concept["resolutions"] = [item.value]


def _take_subset(subset: _Subset, base: Items, recipe: Recipe, told: set[str]) -> None:
    """The entries that a concept can have for itself."""
    entries, concept = subset.entries, subset.concept
    for name, ours in _CONCEPT_FIELDS.items():
        item = entries.get(name) or base.get(name)
        if item is None or is_nothing(item.value):
            continue
        concept[ours] = item.value
        if item.key not in told and (name in entries or name in ("num_repeats", "class_tokens")):
            told.add(item.key)
            recipe.mapped.append(Mapped(item.key, f"dataset.concepts[].{ours}", item.value))

    concept.setdefault("repeats", 1)
    concept.setdefault("caption", "")
    _masks(entries, concept, recipe, told)
    for name, item in entries.items():
        path = marked().get(name, "")
        if not path.startswith("dataset.captions."):
            continue
        # A fault in one entry must not keep the others from being taken over.
        try:
            value = _coerced(path, item.value, recipe.folders)
        except ValidationError as error:
            recipe.problem(
                "", f"{item.key} = {shown(item.value)}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
            )
            told.add(item.key)
            continue
        if name == "metadata_file":
            concept["caption_table"], ours = value, "dataset.concepts[].caption_table"
        else:
            concept.setdefault("captions", {})[path.rpartition(".")[2]] = value
            ours = path.replace("dataset.", "dataset.concepts[].")

        if item.key not in told:
            told.add(item.key)
            recipe.mapped.append(Mapped(item.key, ours, value))


def _masks(entries: Items, concept: dict[str, Any], recipe: Recipe, told: set[str]) -> None:
    folder, alpha = entries.get("conditioning_data_dir"), entries.get("alpha_mask")
    if folder is not None and not is_nothing(folder.value):
        concept["masks"], concept["mask_folder"] = "folder", resolved(str(folder.value), recipe.folders)
        _tell(folder, "dataset.concepts[].mask_folder", recipe, told)
    if alpha is not None:
        concept.setdefault("masks", "alpha" if alpha.value else "none")
        _tell(alpha, "dataset.concepts[].masks", recipe, told)


def _preservation(subsets: list[_Subset], base: Items, recipe: Recipe, told: set[str]) -> None:
    """sd-scripts' one free attribute with a meaning: the checkpoint's own answer is what is to be learned."""

    # One entry may come from the file's general part and stand for many subsets: it is judged once for all.
    found: dict[str, tuple[Item, list[bool]]] = {}
    for subset in subsets:
        item = subset.entries.get("custom_attributes") or base.get("custom_attributes")
        if item is not None:
            found.setdefault(item.key, (item, []))[1].append(bool(subset.concept.get("is_regularization")))

    for key, (item, of_regularization) in found.items():
        told.add(key)
        attributes = item.value if isinstance(item.value, Mapping) else {}
        instead = "for other pictures objective.preserve_class keeps what the checkpoint makes of a word"
        if not attributes.get("diff_output_preservation"):
            recipe.rest(key) if is_nothing(item.value) else recipe.skip(key, reason_for("custom_attributes") or "")
        elif any(of_regularization):
            note = "objective.preserve_regularization, for all regularization images"
            note += "" if all(of_regularization) else f"; {instead}"
            recipe.set("objective.preserve_regularization", True, key, note=note)
        else:
            recipe.skip(key, f"diff_output_preservation is for regularization images here (is_reg); {instead}")


def _tell(item: Item, path: str, recipe: Recipe, told: set[str]) -> None:
    if item.key not in told:
        told.add(item.key)
        recipe.mapped.append(Mapped(item.key, path, item.value))


def _once_for_all(subsets: list[_Subset], base: Items, recipe: Recipe, told: set[str]) -> None:
    """Entries that hold for the whole run here: the first one counts where datasets differ.

    ``base``: what holds for a dataset that says nothing.
    """
    # One setting here, where datasets and subsets may differ: the account says of each other one that the first counts.
    taken: dict[str, Item] = {}
    for name, item in _entries_left(subsets, told):
        if is_nothing(item.value):
            recipe.rest(item.key)
        elif marked().get(name) is None and name not in _SWITCHES:
            _pass_over(name, item, recipe)
        elif name in taken:
            _take_another(name, item, taken[name], recipe)
        else:
            taken[name] = item
            value = [item.value] if name == "caption_extension" else item.value
            take_one(name, Item(item.key, value), recipe)

    for name, item in taken.items():
        silent = [subset for subset in subsets if name not in subset.entries]
        if silent and not (name in base and base[name].value == item.value):
            _hold_for_the_silent(name, item, silent, recipe)


def _entries_left(subsets: Sequence[_Subset], told: set[str]) -> Iterator[tuple[str, Item]]:
    """What nobody has accounted for yet, once each: a dataset's own entries stand in every one of its subsets."""
    for subset in subsets:
        for name, item in subset.entries.items():
            if item.key not in told and name not in ("image_dir", "subsets"):
                told.add(item.key)
                yield name, item


def _pass_over(name: str, item: Item, recipe: Recipe) -> None:
    """An entry that is no setting here, for a reason or because nobody knows it."""
    reason = reason_for(name)
    recipe.skip(item.key, reason or unknown(name, _HANDLED))
    if reason is None:
        recipe.unknown.append(item.key)


def _take_another(name: str, item: Item, first: Item, recipe: Recipe) -> None:
    """An entry of a name that is taken already: only endings of caption files add up, else the first one counts."""
    if first.value == item.value:
        recipe.mapped.append(Mapped(item.key, marked().get(name, "dataset.upscale"), item.value))
    elif name == "caption_extension":
        known = recipe.get("dataset.caption_extensions") or []
        recipe.settings["dataset"]["caption_extensions"] = [*dict.fromkeys([*known, str(item.value)])]
        recipe.change(item.key, "all endings are looked for in every folder")
    else:
        recipe.change(item.key, f"one value holds for the whole run: {first.key} = {shown(first.value)}")


def _hold_for_the_silent(name: str, item: Item, silent: Sequence[_Subset], recipe: Recipe) -> None:
    """Datasets that say nothing get the value of another here, which they did not have there."""
    places = dict.fromkeys(subset.dataset if subset.dataset not in item.key else subset.place for subset in silent)
    recipe.mapped = [entry for entry in recipe.mapped if entry.key != item.key]
    note = f"{shown(item.value)} holds for the whole run here, so for {', '.join(places)} too, which had no {name}"
    recipe.change(item.key, note)


_SWITCHES = {"bucket_no_upscale", "v_parameterization"}
