"""Teach something in three steps: what it is, the pictures, a name. Everything else is proposed, with its reason.

What is proposed comes from ``presets/*.toml`` of the package. No torch here, as long as the caller says which family
the checkpoint is of: finding that out reads the checkpoint.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from loraloom.control import Control, keep_going
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, LoraloomError, UnknownNameError
from loraloom.events import Listener, ignore
from loraloom.folders import cache_folder
from loraloom.formats.files import make_folder
from loraloom.generation.settings import GenerateSettings
from loraloom.models.tokenizer import clip_tokenizer
from loraloom.plain_data import parse_toml
from loraloom.studio.datasets import DatasetReport, Problem, check_dataset
from loraloom.studio.forms import data_of
from loraloom.studio.jobs.settings import ClassImagesSettings
from loraloom.training.settings import TrainSettings

__all__ = [
    "EMBEDDED",
    "Chosen",
    "Preset",
    "Teaching",
    "Trigger",
    "base_checkpoint",
    "check_trigger",
    "preset_of",
    "presets",
    "propose",
]

EMBEDDED = "embedded"
"""What presets call the small checkpoint that comes with the package."""
_ENDINGS = ("zq", "xv", "qk", "vlr")
"""Put behind a word that every checkpoint knows, so that it means nothing yet."""


@dataclass(frozen=True)
class Chosen:
    """One setting that a preset decides, and why, in one sentence."""

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class Preset:
    """What can be taught. ``caption`` and ``class_prompt`` hold ``{trigger}`` and ``{class}``."""

    kind: str
    title: str
    summary: str
    class_word: str
    caption: str
    class_prompt: str
    """What regularization images show; empty where none are wanted."""
    choices: tuple[Mapping[str, Any], ...] = field(repr=False)
    judged_at: Mapping[str, int] = field(repr=False)
    """The side in pixels that pictures are judged by, for each family."""

    def chosen(self, family: str, images: int) -> dict[str, Chosen]:
        """The choices for a family and a number of pictures, by setting."""
        found: dict[str, Chosen] = {}
        for choice in self.choices:
            first, last = choice.get("pictures", (0, images))
            if family in choice.get("families", (family,)) and first <= images <= last:
                found[choice["setting"]] = Chosen(choice["setting"], choice["value"], choice["why"])
        return found


@dataclass(frozen=True)
class Trigger:
    """The word that calls what was taught. ``pieces``: how the tokenizer cuts it."""

    word: str
    pieces: tuple[str, ...]
    is_known: bool
    """Whether it is a word of the vocabulary, which means something to every checkpoint already."""
    remark: str


@dataclass(frozen=True)
class Teaching:
    """What is proposed. ``settings`` train it as they are; ``choices`` say why, one sentence each."""

    preset: Preset
    family: str
    images: int
    trigger: Trigger
    choices: tuple[Chosen, ...]
    class_images: ClassImagesSettings | None
    """Regularization images to paint before the training; None where none are wanted, or there are some."""
    problems: tuple[Problem, ...]
    """What is wrong with single pictures and captions, the worst first."""
    settings: TrainSettings


@cache
def presets() -> Mapping[str, Preset]:
    """All that can be taught, by kind."""
    folder = files("loraloom") / "presets"
    common, *others = sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=_common_first)
    shared = parse_toml(common.read_text(encoding="utf-8"), common.name)
    return {path.name[:-5]: _preset(path.name[:-5], path.read_text(encoding="utf-8"), shared) for path in others}


def _common_first(path: Any) -> tuple[bool, str]:
    return path.name != "common.toml", path.name


def _preset(kind: str, text: str, shared: Mapping[str, Any]) -> Preset:
    data = parse_toml(text, f"{kind}.toml")
    return Preset(
        kind=kind,
        title=data["title"],
        summary=data["summary"],
        class_word=data["class"],
        caption=data["caption"],
        class_prompt=data.get("class_prompt", ""),
        choices=(*shared["choice"], *data["choice"]),
        judged_at=shared["judged_at"],
    )


def preset_of(kind: str) -> Preset:
    """The preset of a kind. Raises UnknownNameError."""
    if kind not in presets():
        raise UnknownNameError("kind of subject", kind, presets())
    return presets()[kind]


def check_trigger(word: str) -> Trigger:
    """How the tokenizer cuts a trigger word, and whether it means something already."""
    tokenizer = clip_tokenizer()
    pieces = tuple(tokenizer.decode([token]) for token in tokenizer.encode(word))
    is_known = len(pieces) <= 1
    if is_known:
        remark = "a word that every checkpoint knows already: the old meaning will mix with yours"
    elif all(len(tokenizer.encode(part)) == 1 for part in word.split()):
        remark = "made of words that every checkpoint knows: their old meanings will mix with yours"
        is_known = True
    else:
        remark = f"{len(pieces)} tokens that mean nothing together: free to learn"
    return Trigger(word, pieces, is_known, remark)


def _invented(name: str) -> Trigger:
    """A trigger word out of a name, one that means nothing yet."""
    word = re.sub(r"[^\w]+|_", "", name.lower()) or "thing"
    found = check_trigger(word)
    for ending in _ENDINGS:
        if not found.is_known:
            break
        found = check_trigger(f"{word}{ending}")
    return found


def propose(
    kind: str,
    checkpoint: Path | None,
    pictures: Path,
    name: str = "",
    *,
    family: str = "",
    trigger: str = "",
    class_word: str = "",
    output: Path = Path("runs"),
    listener: Listener = ignore,
    control: Control = keep_going,
) -> Teaching:
    """The settings to teach what is in the folder ``pictures``, and the reasons. Trains and writes nothing.

    ``checkpoint`` None: the small one of the package (:func:`base_checkpoint` writes it). ``family`` left out: read
    from the checkpoint. ``trigger`` and ``class_word`` left out: made from the name, and the kind's. Raises
    UnknownNameError for a kind there is not, DatasetError where there is no usable picture, SettingsError for a name
    that not every system can keep, and what opening the checkpoint raises.
    """
    preset = preset_of(kind)
    family = EMBEDDED if checkpoint is None else family or _family(checkpoint)
    looked_at = DatasetSettings(folder=pictures, resolution=preset.judged_at.get(family))
    report = check_dataset(looked_at, listener=listener, control=control)
    if not report.images:
        reasons = "; ".join(str(problem) for problem in report.problems[:3])
        raise DatasetError(f"{pictures} holds no picture that can be used", reasons or "add some pictures")

    name = name.strip() or re.sub(r"^\d+_", "", pictures.absolute().name)
    word = check_trigger(trigger.strip()) if trigger.strip() else _invented(name)
    words = {"trigger": word.word, "class": class_word.strip() or preset.class_word}
    chosen = preset.chosen(family, report.images) | {one.setting: one for one in _of_pictures(preset, report, words)}
    if _has_own_repeats(report):
        chosen.pop("dataset.repeats", None)

    # Trained as they are: whoever changes one of them does so in the settings that come out.
    choices = tuple(Chosen(one.setting, _filled(one.value, words), one.why) for one in chosen.values())
    given = {"checkpoint": str(checkpoint or _base_path()), "output": str(output), "name": name}
    given |= {"dataset.folder": str(pictures), "saving.trigger": word.word}
    settings = TrainSettings.parse(data_of(given | {one.setting: one.value for one in choices}), source=kind)
    return Teaching(
        preset=preset,
        family=family,
        images=report.images,
        trigger=word,
        choices=choices,
        class_images=_class_series(preset, settings, report, words),
        problems=tuple(report.problems),
        settings=settings,
    )


def _family(checkpoint: Path) -> str:
    from loraloom.models.checkpoint import open_checkpoint

    return open_checkpoint(checkpoint).family.name


def _has_own_repeats(report: DatasetReport) -> bool:
    """Whether the folders say by their names how often they are shown."""
    own = [row.concept.folder.name for row in report.concepts if not row.concept.is_regularization]
    return all(re.match(r"0*[1-9]\d{0,3}_", name) for name in own)


def _of_pictures(preset: Preset, report: DatasetReport, words: Mapping[str, str]) -> Iterator[Chosen]:
    """What follows from the captions that are there."""
    yield Chosen("dataset.captions.trigger", words["trigger"], "put in front of every caption that does not have it")
    captions = sum(row.captions for row in report.concepts if not row.concept.is_regularization)
    if not captions:
        why = "the pictures have no captions, so that all get this one"
        yield Chosen("dataset.captions.sentence", preset.caption, why)


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """The value with ``{trigger}`` and ``{class}`` filled in."""
    if isinstance(value, str):
        for name, word in words.items():
            value = value.replace(f"{{{name}}}", word)
        return value
    return [_filled(item, words) for item in value] if isinstance(value, list) else value


def _class_series(
    preset: Preset, settings: TrainSettings, report: DatasetReport, words: Mapping[str, str]
) -> ClassImagesSettings | None:
    """As many pictures of the class as there are of the subject."""
    if not preset.class_prompt or report.regularization_images:
        return None
    preview = settings.preview
    paint = GenerateSettings(
        prompt=_filled(preset.class_prompt, words),
        steps=preview.steps,
        cfg_scale=preview.cfg_scale,
        sampler=preview.sampler,
        device=settings.device,
    )
    return ClassImagesSettings(
        checkpoint=settings.checkpoint,
        dataset=settings.dataset,
        paint=paint,
        count=report.images,
        trigger=words["trigger"],
    )


def _base_path() -> Path:
    return cache_folder() / "checkpoints" / "embedded-sd1.safetensors"


def base_checkpoint() -> Path:
    """The small checkpoint of the package as an ordinary file, written on first use in a process of its own.

    Raises OutputError, or LoraloomError with what that process said.
    """
    path = _base_path()
    if path.is_file():
        return path
    make_folder(path.parent)
    command = [sys.executable, "-P", "-m", "loraloom.studio.embedded", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LoraloomError(f"{path} could not be written: {said[-1]}", "check that the disk has room")
    return path
