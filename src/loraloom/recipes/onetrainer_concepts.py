"""The concepts of OneTrainer: folders with their repeats, captions and changes of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.errors import FileError
from loraloom.plain_data import shown
from loraloom.reading import read_text
from loraloom.recipes.names import unknown
from loraloom.recipes.recipe import Item, Recipe, is_nothing, resolved
from loraloom.recipes.rows import Reading, Row, together

__all__ = ["CONCEPT", "IMAGE", "TEXT", "read_sizes", "take_concept"]


def read_sizes(recipe: Recipe, value: Any, key: str) -> list[Any]:
    """``512``, ``512x768`` or several with commas, as settings have them; a problem and nothing for anything else."""
    sizes: list[Any] = []
    for part in str(value).split(","):
        sides = [side.strip() for side in part.lower().split("x")]
        if not all(side.isdecimal() and len(side) < 10 for side in sides) or len(sides) > 2:
            recipe.problem("", f"{key} = {shown(value)} is not a size such as 512, 512x768 or 512,768")
            return []
        sizes.append(int(sides[0]) if len(sides) == 1 else [int(side) for side in sides])
    return sizes


@dataclass
class _Part(Reading):
    """A concept, or its section for pictures or captions, while it is read."""

    label: str = ""
    entry: dict[str, Any] = field(default_factory=dict)
    """What it becomes in dataset.concepts."""
    said: Mapping[str, Any] = field(default_factory=dict)

    def taken(self, key: str, otherwise: Any = None) -> Any:
        item = self.take(key)
        return otherwise if item is None else item.value

    def note(self, key: str, text: str) -> None:
        self.recipe.change(f"{self.label}.{key}", text)

    def not_known(self, key: str) -> None:
        self.recipe.skip(f"{self.label}.{key}", unknown(key))
        self.recipe.unknown.append(f"{self.label}.{key}")


def _part(recipe: Recipe, label: str, values: Any, entry: dict[str, Any]) -> _Part:
    said = {str(key): value for key, value in values.items()} if isinstance(values, Mapping) else {}
    return _Part(recipe, {key: Item(f"{label}.{key}", value) for key, value in said.items()}, label, entry, said)


def take_concept(
    recipe: Recipe, label: str, concept: Mapping[str, Any], found: list[dict[str, Any]], held_out: list[str]
) -> None:
    """Add a concept to ``found``, or its folder to ``held_out`` if it is one to measure on."""
    part = _part(recipe, label, concept, {})
    path = part.taken("path")
    if is_nothing(path):
        recipe.skip(f"{label}.path", "no folder")
        return
    folder = resolved(str(path), recipe.folders)
    part.entry["folder"] = folder
    part.note("path", f"a concept: {folder}")
    if _is_held_out(part):
        if part.said.get("enabled", True) is not False:
            held_out.append(folder)
        part.note("type", "pictures to measure on: validation.folder")
        return
    part.walk(CONCEPT)
    for key in part.left:
        part.not_known(key)
    found.append(part.entry)


def _is_held_out(part: _Part) -> bool:
    return bool(part.said.get("validation_concept")) or _type(part) == "VALIDATION"


def _type(part: _Part) -> str:
    return str(part.said.get("type") or "STANDARD").upper()


# -- the concept itself --------------------------------------------------------------------------------------------


def _kind(row: Row, part: _Part) -> None:
    """Regularization images are those of which OneTrainer asks the checkpoint what it makes of them."""
    part.taken("type")
    part.taken("validation_concept")
    if _type(part) == "PRIOR_PREDICTION":
        part.entry["is_regularization"] = True
        note = "regularization images with objective.preserve_regularization: what the checkpoint makes of them is kept"
        part.recipe.set("objective.preserve_regularization", True, f"{part.label}.type", note=note)


def _name(row: Row, part: _Part) -> None:
    name = part.taken(row.key)
    if not is_nothing(name):
        part.entry["name"] = str(name)


def _enabled(row: Row, part: _Part) -> None:
    if part.taken(row.key) is False:
        part.entry["enabled"] = False


def _repeats(row: Row, part: _Part) -> None:
    """REPEATS: times in an epoch. SAMPLES: pictures of the concept in an epoch, of which a run knows no like."""
    older = part.taken("repeats", 1.0)
    amount = part.taken("balancing", older)
    by_samples = str(part.taken("balancing_strategy", "REPEATS") or "").upper() == "SAMPLES"
    key = f"{part.label}.balancing"
    if not isinstance(amount, (int, float)) or isinstance(amount, bool) or not -math.inf < amount < math.inf:
        part.recipe.problem("", f"{key} = {shown(amount)} is not a number")
    elif by_samples:
        part.recipe.skip(key, f"{amount} pictures in an epoch: set the concept's repeats so that it comes near")
    elif amount != round(amount) or amount < 1:
        part.entry["repeats"] = max(1, round(amount))
        note = f"{amount} became {part.entry['repeats']}: a picture is shown a whole number of times"
        part.recipe.change(key, note)
    else:
        part.entry["repeats"] = int(amount)


def _loss_weight(row: Row, part: _Part) -> None:
    weight = part.taken(row.key)
    if weight not in (1, None):
        part.entry["loss_weight"] = weight


def _folders_inside(row: Row, part: _Part) -> None:
    if not part.taken(row.key):
        part.note(row.key, row.remark)


def _section(rows: tuple[Row, ...], rest: Callable[[_Part, str, Any], None]) -> Callable[[Row, Any], None]:
    """A table inside the concept; ``rest`` says what to do with the keys that it does not have, in the file's order."""

    def take(row: Row, part: _Part) -> None:
        section = _part(part.recipe, f"{part.label}.{row.key}", part.taken(row.key), part.entry)
        section.walk(rows)
        for key, item in section.left.items():
            if key != "__version":
                rest(section, key, item.value)

    return take


def _drawn_anew(row: Row, part: _Part) -> None:
    if part.taken(row.key) not in (None, 1):
        part.recipe.skip(f"{part.label}.{row.key}", row.remark)


def _silent(row: Row, part: _Part) -> None:
    part.taken(row.key)


# -- its pictures --------------------------------------------------------------------------------------------------


def _switch(row: Row, part: _Part) -> None:
    """A switch of the same meaning; with a remark, of a meaning that is only near."""
    if part.taken(row.key):
        part.entry[row.ours.rpartition(".")[2]] = True
        if row.remark:
            part.note(row.key, row.remark)


def _sizes(row: Row, part: _Part) -> None:
    is_on, size = part.taken("enable_resolution_override"), part.taken("resolution_override")
    sizes = read_sizes(part.recipe, size, f"{part.label}.resolution_override") if is_on else []
    if sizes:
        part.entry["resolutions"] = sizes


def _brightness(row: Row, part: _Part) -> None:
    """One setting for both; where the hue is shifted already, this one is reported as not carried over."""
    if "color_augmentation" not in part.entry and part.taken(row.key):
        part.entry["color_augmentation"] = True
        part.note("enable_random_hue", row.remark)


def _rest_of_image(part: _Part, key: str, value: Any) -> None:
    if value and key.startswith("enable_"):
        part.recipe.skip(f"{part.label}.{key}", "pictures are flipped, cropped and shifted in hue, not more")
    elif not key.startswith(("enable_", "random_")):
        part.not_known(key)


# -- its captions --------------------------------------------------------------------------------------------------


def _captions(part: _Part) -> dict[str, Any]:
    captions: dict[str, Any] = part.entry.setdefault("captions", {})
    return captions


def _source(row: Row, part: _Part) -> None:
    """A text file beside each picture unless the file says otherwise."""
    source, path = str(part.taken("prompt_source") or "sample"), part.taken("prompt_path")
    if source == "filename":
        _captions(part)["source"] = "filename"
    elif source == "concept" and not is_nothing(path):
        _one_file_of_prompts(f"{part.label}.prompt_path", str(path), part)


def _one_file_of_prompts(key: str, text: str, part: _Part) -> None:
    """Lines of which one is drawn for a picture: a choice between braces."""
    recipe, path = part.recipe, Path(resolved(text, part.recipe.folders))
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except FileError as error:
        recipe.problem("", f"{key}: {error.problem}")
        return
    if not lines:
        recipe.problem("", f"{key}: {path} is empty")
    elif len(lines) == 1:
        part.entry["caption"] = lines[0]
        recipe.change(key, "the caption of every picture")
    elif any(character in line for line in lines for character in "{}|"):
        recipe.problem("", f"{key}: {path} holds {{, }} or |, which are choices in captions here")
    else:
        part.entry["caption"] = "{" + "|".join(lines) + "}"
        _captions(part)["wildcards"] = True
        recipe.change(key, f"{len(lines)} lines, of which one is drawn: a choice between braces")


def _are_tags(part: _Part) -> bool:
    """Whether captions are taken apart at all: only then the delimiter and the tags that stay count."""
    return bool(part.said.get("enable_tag_shuffling")) or bool(part.said.get("tag_dropout_enable"))


def _shuffle(row: Row, part: _Part) -> None:
    if part.taken(row.key):
        _captions(part)["shuffle"] = True


def _separator(row: Row, part: _Part) -> None:
    delimiter = part.taken(row.key)
    if _are_tags(part) and delimiter not in (",", None, ""):
        _captions(part)["separator"] = str(delimiter)


def _kept(row: Row, part: _Part) -> None:
    kept = part.taken(row.key, 1)
    if _are_tags(part) and kept:
        _captions(part)["keep_tokens"] = kept


def _dropout(row: Row, part: _Part) -> None:
    """Whole captions, or one tag after the other, with a list of tags that stay."""
    is_on, probability = part.taken("tag_dropout_enable"), part.taken("tag_dropout_probability")
    mode = str(part.taken("tag_dropout_mode", "FULL")).upper()
    special, special_mode = part.taken("tag_dropout_special_tags"), str(part.taken("tag_dropout_special_tags_mode"))
    is_regex = part.taken("tag_dropout_special_tags_regex")

    if not is_on or not probability:
        return
    _captions(part)["dropout" if mode == "FULL" else "tag_dropout"] = probability
    if mode == "FULL":
        part.note("tag_dropout_mode", "FULL: the whole caption, with what keep_tags_count keeps")
    elif "WEIGHTED" in mode:
        part.note("tag_dropout_mode", "tag_dropout: the same for every tag, early or late")

    # A pattern cannot be a list of tags that stay, and a list of those that go has no setting here.
    if special_mode.upper() == "WHITELIST" and special and not is_regex:
        delimiter = str(part.said.get("tag_delimiter", ",") or ",")
        _captions(part)["keep_tags"] = [tag.strip() for tag in str(special).split(delimiter) if tag.strip()]
    elif special_mode.upper() != "NONE" and special:
        reason = "a list of tags that stay is offered: keep_tags"
        part.recipe.skip(f"{part.label}.tag_dropout_special_tags", reason)


def _capitals(row: Row, part: _Part) -> None:
    if part.taken(row.key):
        part.recipe.skip(f"{part.label}.{row.key}", row.remark)


def _rest_of_text(part: _Part, key: str, value: Any) -> None:
    if not key.startswith("caps_randomize"):
        part.not_known(key)


# -- the tables ----------------------------------------------------------------------------------------------------

_HUE = "color_augmentation: hue and gamma, with strengths of its own"
_ANEW = "how often something is drawn anew: dataset.variants; captions every time"
_OURS = "dataset.concepts[]"

IMAGE = (
    Row(
        "enable_crop_jitter",
        f"{_OURS}.random_crop",
        _switch,
        "random_crop: the whole margin is used, not a part of it",
    ),
    Row("enable_random_flip", f"{_OURS}.flip", _switch),
    *together(_sizes, f"{_OURS}.resolutions", "enable_resolution_override", "resolution_override"),
    Row("enable_random_hue", f"{_OURS}.color_augmentation", _switch, _HUE),
    Row("enable_random_brightness", f"{_OURS}.color_augmentation", _brightness, _HUE),
)
"""What a concept's section ``image`` may hold; other changes of pictures are not offered."""

TEXT = (
    *together(_source, "dataset.captions.source", "prompt_source", "prompt_path"),
    Row("enable_tag_shuffling", "dataset.captions.shuffle", _shuffle),
    Row("tag_delimiter", "dataset.captions.separator", _separator),
    Row("keep_tags_count", "dataset.captions.keep_tokens", _kept, "1 if not given", always=True),
    *together(
        _dropout, "dataset.captions.tag_dropout", "tag_dropout_enable", "tag_dropout_mode", "tag_dropout_probability"
    ),
    *together(
        _dropout,
        "dataset.captions.keep_tags",
        "tag_dropout_special_tags",
        "tag_dropout_special_tags_mode",
        "tag_dropout_special_tags_regex",
    ),
    Row("caps_randomize_enable", "", _capitals, "capital letters are not changed; CLIP does not see them"),
)
"""What a concept's section ``text`` may hold."""

CONCEPT = (
    Row("name", f"{_OURS}.name", _name),
    Row("enabled", f"{_OURS}.enabled", _enabled),
    *together(_kind, f"{_OURS}.is_regularization", "type", "validation_concept"),
    Row("balancing", f"{_OURS}.repeats", _repeats, "REPEATS; 1 if not given", always=True),
    *together(_repeats, f"{_OURS}.repeats", "balancing_strategy", "repeats"),
    Row("loss_weight", f"{_OURS}.loss_weight", _loss_weight),
    Row(
        "include_subdirectories",
        "",
        _folders_inside,
        "off; folders inside a concept's folder belong to it here",
        always=True,
    ),
    Row("image", _OURS, _section(IMAGE, _rest_of_image)),
    Row("text", _OURS, _section(TEXT, _rest_of_text)),
    Row("__version", "", _silent),
    Row("seed", "", _silent, "everything random follows from the seed of the run"),
    Row("concept_stats", "", _silent, "what that program counted"),
    Row("image_variations", "dataset.variants", _drawn_anew, _ANEW),
    Row("text_variations", "", _drawn_anew, _ANEW),
)
"""What a concept may hold beside its folder."""
