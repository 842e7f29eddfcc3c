"""The concepts of OneTrainer: folders with their repeats, captions and changes of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraloom.errors import FileError
from loraloom.plain_data import shown
from loraloom.reading import read_text
from loraloom.recipes.names import unknown
from loraloom.recipes.recipe import Recipe, is_nothing, resolved

__all__ = ["read_sizes", "take_concept"]


def read_sizes(recipe: Recipe, value: Any, key: str) -> list[Any]:
    """``512``, ``512x768`` or several with commas, as settings have them; a problem and nothing for anything else."""
    sizes: list[Any] = []
    for part in str(value).split(","):
        sides = [side.strip() for side in part.lower().split("x")]
        if not all(side.isdecimal() and len(side) < 10 for side in sides) or len(sides) > 2:
            recipe.problem("", f"{key} = {shown(value)} is no size such as 512, 512x768 or 512,768")
            return []
        sizes.append(int(sides[0]) if len(sides) == 1 else [int(side) for side in sides])
    return sizes


def take_concept(
    recipe: Recipe, label: str, concept: Mapping[str, Any], found: list[dict[str, Any]], held_out: list[str]
) -> None:
    """Add a concept to ``found``, or its folder to ``held_out`` if it is one to measure on."""
    left = {str(key): value for key, value in concept.items()}
    image, text = ({**value} if isinstance(value := left.pop(key, None), Mapping) else {} for key in ("image", "text"))
    path = left.pop("path", None)
    if is_nothing(path):
        recipe.skip(f"{label}.path", "no folder")
        return
    entry: dict[str, Any] = {"folder": resolved(str(path), recipe.folders)}
    recipe.change(f"{label}.path", f"a concept: {entry['folder']}")
    kind = str(left.pop("type", "STANDARD") or "STANDARD").upper()
    if left.pop("validation_concept", False):
        kind = "VALIDATION"
    name = left.pop("name", None)
    if not is_nothing(name):
        entry["name"] = str(name)
    if left.pop("enabled", True) is False:
        entry["enabled"] = False
    if kind == "VALIDATION":
        if entry.get("enabled", True):
            held_out.append(entry["folder"])
        recipe.change(f"{label}.type", "pictures to measure on: validation.folder")
        return
    if kind == "PRIOR_PREDICTION":
        entry["is_regularization"] = True
        note = "regularization images with objective.preserve_regularization: what the checkpoint makes of them is kept"
        recipe.set("objective.preserve_regularization", True, f"{label}.type", note=note)
    _repeats(recipe, label, left, entry)
    weight = left.pop("loss_weight", 1.0)
    if weight not in (1, None):
        entry["loss_weight"] = weight
    if not left.pop("include_subdirectories", False):
        recipe.change(f"{label}.include_subdirectories", "off; folders inside a concept's folder belong to it here")
    _concept_image(recipe, label, image, entry)
    _concept_text(recipe, label, text, entry)
    for quiet in ("__version", "seed", "concept_stats", "image_variations", "text_variations"):
        value = left.pop(quiet, None)
        if quiet.endswith("variations") and value not in (None, 1):
            recipe.skip(f"{label}.{quiet}", "how often something is drawn anew: dataset.variants; captions every time")
    for key in left:
        recipe.skip(f"{label}.{key}", unknown(key))
        recipe.unknown.append(f"{label}.{key}")
    found.append(entry)


def _repeats(recipe: Recipe, label: str, left: dict[str, Any], entry: dict[str, Any]) -> None:
    """REPEATS: times in an epoch. SAMPLES: pictures of the concept in an epoch, of which a run knows no like."""
    amount = left.pop("balancing", left.pop("repeats", 1.0))
    by_samples = str(left.pop("balancing_strategy", "REPEATS") or "").upper() == "SAMPLES"
    key = f"{label}.balancing"
    if not isinstance(amount, (int, float)) or isinstance(amount, bool) or not -math.inf < amount < math.inf:
        recipe.problem("", f"{key} = {shown(amount)} is no number")
    elif by_samples:
        recipe.skip(key, f"{amount} pictures in an epoch: set the concept's repeats so that it comes near")
    elif amount != round(amount) or amount < 1:
        entry["repeats"] = max(1, round(amount))
        recipe.change(key, f"{amount} became {entry['repeats']}: a picture is shown a whole number of times")
    else:
        entry["repeats"] = int(amount)


def _concept_image(recipe: Recipe, label: str, image: dict[str, Any], entry: dict[str, Any]) -> None:
    if image.pop("enable_crop_jitter", False):
        entry["random_crop"] = True
        recipe.change(f"{label}.image.enable_crop_jitter", "random_crop: the whole margin is used, not a part of it")
    if image.pop("enable_random_flip", False):
        entry["flip"] = True
    override, size = image.pop("enable_resolution_override", False), image.pop("resolution_override", None)
    if override and (sizes := read_sizes(recipe, size, f"{label}.image.resolution_override")):
        entry["resolutions"] = sizes
    hue = any(image.pop(f"enable_random_{what}", False) for what in ("hue", "brightness"))
    if hue:
        entry["color_augmentation"] = True
        recipe.change(
            f"{label}.image.enable_random_hue", "color_augmentation: hue and gamma, with strengths of its own"
        )
    for key, value in image.items():
        if value and key.startswith("enable_"):
            recipe.skip(f"{label}.image.{key}", "pictures are flipped, cropped and shifted in hue, not more")
        elif not key.startswith(("enable_", "random_")) and key != "__version":
            recipe.skip(f"{label}.image.{key}", unknown(key))
            recipe.unknown.append(f"{label}.image.{key}")


def _concept_text(recipe: Recipe, label: str, text: dict[str, Any], entry: dict[str, Any]) -> None:
    captions: dict[str, Any] = {}
    source, path = str(text.pop("prompt_source", "sample") or "sample"), text.pop("prompt_path", None)
    if source == "filename":
        captions["source"] = "filename"
    elif source == "concept" and not is_nothing(path):
        _one_file_of_prompts(recipe, f"{label}.text.prompt_path", str(path), entry, captions)
    delimiter, kept = text.pop("tag_delimiter", ","), text.pop("keep_tags_count", 1)
    shuffled = bool(text.pop("enable_tag_shuffling", False))
    dropped = bool(text.pop("tag_dropout_enable", False))
    mode, probability = str(text.pop("tag_dropout_mode", "FULL")).upper(), text.pop("tag_dropout_probability", 0.0)
    special_mode = str(text.pop("tag_dropout_special_tags_mode", "NONE")).upper()
    special, regex = text.pop("tag_dropout_special_tags", ""), text.pop("tag_dropout_special_tags_regex", False)
    if shuffled:
        captions["shuffle"] = True
    if (shuffled or dropped) and delimiter not in (",", None, ""):
        captions["separator"] = str(delimiter)
    if (shuffled or dropped) and kept:
        captions["keep_tokens"] = kept
    if dropped and probability:
        captions["dropout" if mode == "FULL" else "tag_dropout"] = probability
        if mode == "FULL":
            recipe.change(f"{label}.text.tag_dropout_mode", "FULL: the whole caption, with what keep_tags_count keeps")
        elif "WEIGHTED" in mode:
            recipe.change(f"{label}.text.tag_dropout_mode", "tag_dropout: the same for every tag, early or late")
        if special_mode == "WHITELIST" and special and not regex:
            captions["keep_tags"] = [tag.strip() for tag in str(special).split(str(delimiter or ",")) if tag.strip()]
        elif special_mode != "NONE" and special:
            recipe.skip(f"{label}.text.tag_dropout_special_tags", "a list of tags that stay is offered: keep_tags")
    if text.pop("caps_randomize_enable", False):
        recipe.skip(f"{label}.text.caps_randomize_enable", "capital letters are not changed; CLIP does not see them")
    for key in text:
        if not key.startswith("caps_randomize") and key != "__version":
            recipe.skip(f"{label}.text.{key}", unknown(key))
            recipe.unknown.append(f"{label}.text.{key}")
    if captions:
        entry["captions"] = captions


def _one_file_of_prompts(recipe: Recipe, key: str, text: str, entry: dict[str, Any], captions: dict[str, Any]) -> None:
    """Lines of which one is drawn for a picture: a choice between braces."""
    path = Path(resolved(text, recipe.folders))
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except FileError as error:
        recipe.problem("", f"{key}: {error.problem}")
        return
    if not lines:
        recipe.problem("", f"{key}: {path} is empty")
    elif len(lines) == 1:
        entry["caption"] = lines[0]
        recipe.change(key, "the caption of every picture")
    elif any(character in line for line in lines for character in "{}|"):
        recipe.problem("", f"{key}: {path} holds {{, }} or |, which are choices in captions here")
    else:
        entry["caption"] = "{" + "|".join(lines) + "}"
        captions["wildcards"] = True
        recipe.change(key, f"{len(lines)} lines, of which one is drawn: a choice between braces")
