"""What a dataset and its subsets may say in sd-scripts' dataset files, for themselves or for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loraloom.plain_data import shown
from loraloom.recipes.arguments import row_of, take_one
from loraloom.recipes.names import marked, reason_for, unknown
from loraloom.recipes.recipe import Item, Items, Mapped, Recipe, _coerced, is_nothing, resolved
from loraloom.recipes.rows import Reading, Row, by_key, together

__all__ = ["FOLDER", "OVERRIDDEN", "SUBSET", "DatasetFile", "Subset", "take_subsets"]

OVERRIDDEN = "a subset says something else, which counts there"


@dataclass
class DatasetFile(Reading):
    """A dataset file while it is read; ``left`` are the entries of its general part."""

    source: Path
    outer: Items
    """The run's own arguments, which count where the file is silent."""
    subsets: list[Subset] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    """Keys that are accounted for. An entry of a dataset stands in each of its subsets, and is told once."""
    taken: Items = field(default_factory=dict)
    """Entries of datasets and subsets that hold for the whole run: the first of each name."""

    @property
    def base(self) -> Items:
        """What holds for a concept that says nothing, nor does its dataset."""
        return {**{name: item for name, item in self.outer.items() if name in _OF_CONCEPTS}, **self.left}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where relative folders lie."""
        return (self.source.absolute().parent, Path.cwd())

    def map(self, item: Item, path: str, value: Any = None) -> None:
        """Account for an entry that became a part of the concepts."""
        if item.key not in self.told:
            self.told.add(item.key)
            self.recipe.mapped.append(Mapped(item.key, path, item.value if value is None else value))


@dataclass
class Subset(Reading):
    """One subset; ``left`` is what holds for it: its own entries over those of its dataset."""

    file: DatasetFile
    place: str
    dataset: str
    concept: dict[str, Any] = field(default_factory=dict)
    """What it becomes; empty where it names no folder."""


def take_subsets(file: DatasetFile) -> None:
    """What a concept can have for itself goes to the concepts; the rest holds for the whole run."""
    file.walk(_OF_ALL_SUBSETS)
    for subset in file.subsets:
        _take_subset(subset)
    file.recipe.settings.setdefault("dataset", {})["concepts"] = [subset.concept for subset in file.subsets]
    file.walk(_OF_REGULARIZATION)
    for subset in file.subsets:
        for name, item in subset.left.items():
            if item.key not in file.told:
                file.told.add(item.key)
                row = _row_for_the_run(name)
                row.how(row, subset)
    _hold_for_all(file)
    _told_once(file)
    for name, item in list(file.outer.items()):
        if item.key in file.told:
            del file.outer[name]
    for name, item in file.left.items():
        if item.key not in file.told:
            file.outer[name] = item


def _take_subset(subset: Subset) -> None:
    subset.walk(_OF_A_CONCEPT)
    subset.concept.setdefault("repeats", 1)
    subset.concept.setdefault("caption", "")
    subset.walk(_MASKS)
    rows = _captions()
    for name in [name for name in subset.left if name in rows]:
        rows[name].how(rows[name], subset)


# -- what is judged for all subsets together ---------------------------------------------------------------------


def _resolutions(row: Row, file: DatasetFile) -> None:
    """One resolution for all becomes the dataset's; several become those of the concepts."""
    found: Items = {}
    for subset in file.subsets:
        if subset.value(row.key) is not None:
            item = subset.left[row.key]
            found[item.key] = item

    # Each entry is mapped once, although a dataset's own stands in every one of its subsets.
    differ = len({str(item.value) for item in found.values()}) > 1
    for number, item in enumerate(found.values()):
        if number == 0:
            file.told.add(item.key)
            file.recipe.set(row.ours, item.value, item.key)
        else:
            file.map(item, f"{_OURS}.resolutions" if differ else row.ours)

    for subset in file.subsets:
        taken = subset.take(row.key) if subset.value(row.key) is not None else None
        if differ and taken is not None:
            subset.concept["resolutions"] = [taken.value]


def _preservation(row: Row, file: DatasetFile) -> None:
    """sd-scripts' one free attribute with a meaning: the checkpoint's own answer is what is to be learned."""
    recipe = file.recipe

    # One entry may come from the file's general part and stand for many subsets: it is judged once for all.
    found: dict[str, tuple[Item, list[bool]]] = {}
    for subset in file.subsets:
        item = subset.take(row.key) or file.left.get(row.key)
        if item is not None:
            found.setdefault(item.key, (item, []))[1].append(bool(subset.concept.get("is_regularization")))

    for key, (item, of_regularization) in found.items():
        file.told.add(key)
        attributes = item.value if isinstance(item.value, Mapping) else {}
        instead = "for other pictures objective.preserve_class keeps what the checkpoint makes of a word"
        if not attributes.get("diff_output_preservation"):
            recipe.rest(key) if is_nothing(item.value) else recipe.skip(key, reason_for(row.key) or "")
        elif any(of_regularization):
            note = "objective.preserve_regularization, for all regularization images"
            note += "" if all(of_regularization) else f"; {instead}"
            recipe.set(row.ours, True, key, note=note)
        else:
            recipe.skip(key, f"diff_output_preservation is for regularization images here (is_reg); {instead}")


# -- what a concept has for itself -------------------------------------------------------------------------------


def _of_concept(*, alone: bool) -> Callable[[Row, Subset], None]:
    """A setting of the concept, which may come from above. ``alone``: whether the whole run has none of that name, so
    that what comes from above is accounted for too."""

    def take(row: Row, subset: Subset) -> None:
        item = subset.left.get(row.key) or subset.file.base.get(row.key)
        if item is None or is_nothing(item.value):
            return
        subset.concept[row.ours.rpartition(".")[2]] = item.value
        if alone or row.key in subset.left:
            subset.file.map(item, row.ours)
            subset.left.pop(row.key, None)

    return take


def _masks(row: Row, subset: Subset) -> None:
    """A folder of masks counts before the pictures' transparent parts."""
    concept, file = subset.concept, subset.file
    if subset.value("conditioning_data_dir") is not None:
        folder = subset.left.pop("conditioning_data_dir")
        concept["masks"], concept["mask_folder"] = "folder", resolved(str(folder.value), file.recipe.folders)
        file.map(folder, f"{_OURS}.mask_folder")
    alpha = subset.take("alpha_mask")
    if alpha is not None:
        concept.setdefault("masks", "alpha" if alpha.value else "none")
        file.map(alpha, row.ours)


def _caption(row: Row, subset: Subset) -> None:
    item = subset.left.pop(row.key)
    value = _checked(item, row.ours, subset)
    if value is not _WRONG:
        subset.concept.setdefault("captions", {})[row.ours.rpartition(".")[2]] = value
        subset.file.map(item, row.ours.replace("dataset.", f"{_OURS}."), value)


def _caption_table(row: Row, subset: Subset) -> None:
    item = subset.left.pop(row.key)
    value = _checked(item, "dataset.captions.table", subset)
    if value is not _WRONG:
        subset.concept["caption_table"] = value
        subset.file.map(item, row.ours, value)


_WRONG = object()


def _checked(item: Item, path: str, subset: Subset) -> Any:
    """The value as the setting has it. A fault in one entry must not keep the others from being taken over."""
    try:
        return _coerced(path, item.value, subset.recipe.folders)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        subset.recipe.problem("", f"{item.key} = {shown(item.value)}: {reason}")
        subset.file.told.add(item.key)
        return _WRONG


# -- what holds for the whole run --------------------------------------------------------------------------------


def _row_for_the_run(name: str) -> Row:
    """Settings of the run, by their marks, and keys without a setting."""
    row = row_of(name)
    if name in _OF_THE_RUN:
        return _OF_THE_RUN[name]
    if row is None:
        return Row(name, "", _not_known)
    return Row(name, row.ours, _first_counts if row.ours else _no_setting, row.remark)


def _first_counts(row: Row, subset: Subset) -> None:
    """Datasets and subsets may say different things where there is one setting here: the first counts, and each of the
    others is told so."""
    item, file, recipe = subset.left[row.key], subset.file, subset.recipe
    first = file.taken.get(row.key)
    if is_nothing(item.value):
        recipe.rest(item.key)
    elif first is None:
        file.taken[row.key] = item
        take_one(row.key, item, recipe)
    elif first.value == item.value:
        recipe.mapped.append(Mapped(item.key, row.ours, item.value))
    else:
        recipe.change(item.key, f"one value holds for the whole run: {first.key} = {shown(first.value)}")


def _endings(row: Row, subset: Subset) -> None:
    """A list here, in which all of them find a place."""
    item, file, recipe = subset.left[row.key], subset.file, subset.recipe
    first = file.taken.get(row.key)
    if is_nothing(item.value) or (first is not None and first.value == item.value):
        _first_counts(row, subset)
    elif first is None:
        file.taken[row.key] = item
        take_one(row.key, Item(item.key, [item.value]), recipe)
    else:
        known = recipe.get(row.ours) or []
        recipe.settings["dataset"]["caption_extensions"] = [*dict.fromkeys([*known, str(item.value)])]
        recipe.change(item.key, row.remark)


def _no_setting(row: Row, subset: Subset) -> None:
    item = subset.left[row.key]
    if is_nothing(item.value):
        subset.recipe.rest(item.key)
    else:
        subset.recipe.skip(item.key, row.remark)


def _not_known(row: Row, subset: Subset) -> None:
    item = subset.left[row.key]
    if is_nothing(item.value):
        subset.recipe.rest(item.key)
    else:
        subset.recipe.skip(item.key, unknown(row.key, {*by_key(SUBSET), "subsets"}))
        subset.recipe.unknown.append(item.key)


def _hold_for_all(file: DatasetFile) -> None:
    """A dataset that is silent gets the value of another here, which it did not have there."""
    recipe, base = file.recipe, {**file.outer, **file.left}
    for name, item in file.taken.items():
        silent = [subset for subset in file.subsets if name not in subset.left]
        if not silent or (name in base and base[name].value == item.value):
            continue
        places = dict.fromkeys(subset.dataset if subset.dataset not in item.key else subset.place for subset in silent)
        note = f"{shown(item.value)} holds for the whole run here, so for {', '.join(places)} too, which had no {name}"
        _say_more(item.key, note, recipe)


def _say_more(key: str, note: str, recipe: Recipe) -> None:
    """A further remark on an entry, behind what is said of it already."""
    earlier = [said for told, said in recipe.changed if told == key and said != OVERRIDDEN]
    recipe.changed = [entry for entry in recipe.changed if entry[0] != key]
    recipe.change(key, "; ".join([*earlier, note]))


def _told_once(file: DatasetFile) -> None:
    """An entry of a dataset may be taken over for some of its subsets and give way in another: the remark is kept."""
    recipe = file.recipe
    others = {key for key, note in recipe.changed if note != OVERRIDDEN} | {key for key, _ in recipe.unmapped}
    recipe.changed = [(key, note) for key, note in recipe.changed if note != OVERRIDDEN or key not in others]

    # A remark says more than the setting that an entry became, or than that it is off.
    noted = file.told & {key for key, _ in [*recipe.changed, *recipe.unmapped]}
    recipe.mapped = [entry for entry in recipe.mapped if entry.key not in noted]
    recipe.idle = [key for key in recipe.idle if key not in noted]


# -- the tables ----------------------------------------------------------------------------------------------------

_OURS = "dataset.concepts[]"
FOLDER = Row("image_dir", f"{_OURS}.folder")
_OF_ALL_SUBSETS = (
    Row(
        "resolution",
        "dataset.resolution",
        _resolutions,
        "dataset.concepts[].resolutions where they differ",
        always=True,
    ),
)
_OF_A_CONCEPT = (
    Row("num_repeats", f"{_OURS}.repeats", _of_concept(alone=True), "1 if not given", always=True),
    Row("is_reg", f"{_OURS}.is_regularization", _of_concept(alone=False), always=True),
    Row("class_tokens", f"{_OURS}.caption", _of_concept(alone=True), always=True),
    Row("flip_aug", f"{_OURS}.flip", _of_concept(alone=False), always=True),
    Row("random_crop", f"{_OURS}.random_crop", _of_concept(alone=False), always=True),
    Row("color_aug", f"{_OURS}.color_augmentation", _of_concept(alone=False), always=True),
)
_OF_CONCEPTS = frozenset(by_key(_OF_A_CONCEPT))
_MASKS = together(_masks, f"{_OURS}.masks", "conditioning_data_dir", "alpha_mask", remark="also mask_folder")
_TABLE_OF_CAPTIONS = Row("metadata_file", f"{_OURS}.caption_table", _caption_table)
_OF_REGULARIZATION = (
    Row(
        "custom_attributes",
        "objective.preserve_regularization",
        _preservation,
        "diff_output_preservation",
        always=True,
    ),
)
_OF_THE_RUN = by_key(
    (
        Row(
            "caption_extension",
            "dataset.caption_extensions",
            _endings,
            "all endings are looked for in every folder",
        ),
    )
)


@cache
def _captions() -> Mapping[str, Row]:
    """Captions are made anew for each concept, so all of their settings are the concept's too."""
    rows = [Row(name, path, _caption) for name, path in marked().items() if path.startswith("dataset.captions.")]
    return by_key([*rows, _TABLE_OF_CAPTIONS])


SUBSET = (
    FOLDER,
    *_OF_ALL_SUBSETS,
    *_OF_A_CONCEPT,
    *_MASKS,
    _TABLE_OF_CAPTIONS,
    *_OF_REGULARIZATION,
    *_OF_THE_RUN.values(),
)
"""What a dataset and its subsets may hold beside captions' settings and those of the run, which are known by marks."""
