"""The settings of an image that exists already, from the text inside it or from a text file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraloom.control import Control, keep_going
from loraloom.errors import FileFormatError, LoraloomError, PromptError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.file_hashes import file_hashes, has_hash, is_hash
from loraloom.formats.image_info import Parameters
from loraloom.formats.image_programs import read_image
from loraloom.formats.image_programs import read_text as read_text_parameters
from loraloom.formats.tensors import open_tensors
from loraloom.generation.embeddings import embedding_files
from loraloom.generation.loras import find_lora, lora_files
from loraloom.generation.prompts import extract_loras
from loraloom.generation.recall import Recalled, recall
from loraloom.generation.settings import GenerateSettings
from loraloom.reading import read_text

__all__ = ["given_like", "settings_like"]

_LARGEST_TEXT = 1 << 20


def given_like(
    path: Path,
    given: Mapping[str, Any],
    checkpoint: Path,
    *,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> dict[str, Any]:
    """The settings of an image with those that are ``given`` on top, for the checkpoint that will paint it.

    A notice names files that are not the image's (checkpoint, autoencoder, embeddings). ``control`` is heeded while
    files are read for their hashes. Errors as :func:`settings_like`.
    """
    names = ("lora_folders", "embedding_folders", "vae")
    known = GenerateSettings.parse(
        {name: value for name, value in given.items() if name in names}, source="the command line"
    )
    recalled = settings_like(path, known.lora_folders, listener=listener, control=control)
    for text in _other_files(recalled, path.name, checkpoint, known, control):
        listener(Notice(text, "warning"))
    return {**recalled.settings, **given}


def _other_files(
    recalled: Recalled, image: str, checkpoint: Path, known: GenerateSettings, control: Control
) -> Iterator[str]:
    """A sentence for each file whose content does not have the hash that the image names."""
    if recalled.model_hash and not checkpoint.is_dir():
        made = f"{image} was made with {recalled.model or 'a checkpoint'} ({recalled.model_hash})"
        if not is_hash(recalled.model_hash):
            yield f"{made}, a hash that is not known here: whether {checkpoint.name} is that checkpoint is not known"
        elif checkpoint.is_file() and not has_hash(checkpoint, recalled.model_hash, control):
            yield f"{made}, not with {file_hashes(checkpoint, control).sha256[:10]}"

    # Only what is here can differ: without its file, an embedding's name is a word like any other.
    if recalled.vae_hash and known.vae is not None and not _has_hash(known.vae, recalled.vae_hash, control):
        yield f"{image} was made with another autoencoder ({recalled.vae_hash}) than {known.vae}"
    here = embedding_files(known.embedding_folders) if recalled.embedding_hashes else {}
    for name, digits in recalled.embedding_hashes.items():
        if name in here and not _has_hash(here[name], digits, control):
            yield f"the embedding {name} is {here[name]} here, whose content does not have the image's hash {digits}"


def settings_like(
    path: Path, lora_folders: Sequence[Path], *, listener: Listener = ignore, control: Control = keep_going
) -> Recalled:
    """Settings that make the image again. A warning names what is not as it was.

    A LoRA that is not there under its name is looked for by its hash in ``lora_folders``; ``control`` is heeded while
    files are read for theirs. Raises MissingFileError, and FileFormatError for a file that says nothing of how it was
    made.
    """
    recalled = recall(_parameters(path))
    for remark in recalled.remarks:
        listener(Notice(f"{path.name}: {remark}", "warning"))
    settings: dict[str, Any] = dict(recalled.settings)
    for name in ("prompt", "negative_prompt", "hires_prompt"):
        if settings.get(name):
            settings[name] = _with_found_loras(settings[name], recalled, lora_folders, listener, control)
    return replace(recalled, settings=settings)


def _parameters(path: Path) -> Parameters:
    if path.suffix.lower() == ".txt":
        return _parameters_of_text(path)
    found = read_image(path)
    if found is None:
        raise FileFormatError(
            f"{path} does not say how it was made",
            "only images with their parameters inside can be repeated: many programs leave them out on request",
        )
    if not found.fields:
        raise FileFormatError(
            f"{path}: the text inside is not a list of parameters: {found.prompt[:60]!r}",
            "give the prompt and the settings yourself",
        )
    return found


def _parameters_of_text(path: Path) -> Parameters:
    try:
        return read_text_parameters(read_text(path, limit=_LARGEST_TEXT))
    except FileFormatError as error:
        if path.name in error.problem:
            raise
        raise FileFormatError(f"{path}: {error.problem}", error.hint) from error


def _with_found_loras(
    prompt: str, recalled: Recalled, folders: Sequence[Path], listener: Listener, control: Control
) -> str:
    """The prompt with its LoRA tags naming the files whose content has the hash given in the image, where there is
    one."""
    for tag in extract_loras(prompt)[1]:
        digits = recalled.lora_hashes.get(tag.name, "")
        named = _by_name(tag.name, folders)
        if not is_hash(digits) or (named is not None and _has_hash(named, digits, control)):
            continue
        found, claiming = _by_hash(digits, folders, control)
        for notice in _what_was_found(tag.name, digits, named, found, claiming):
            listener(notice)
        if found is not None:
            tagged = re.compile(r"(<(?:lora|lyco):\s*)" + re.escape(tag.name) + r"(\s*[:>])")
            place = str(found.resolve())  # a path that is a path wherever it is read
            prompt = tagged.sub(lambda match, place=place: f"{match[1]}{place}{match[2]}", prompt)  # type: ignore[misc]
    return prompt


def _what_was_found(
    name: str, digits: str, named: Path | None, found: Path | None, claiming: Sequence[Path]
) -> Iterator[Notice]:
    """The sentence about a LoRA whose name and hash do not lead to the same file."""
    if found is not None:
        other = "" if named is None else f"; {named} has the name, but different content"
        yield Notice(f"the LoRA {name} is {found} here, found by the hash of its content{other}")
    elif named is not None:
        yield Notice(
            f"the LoRA {name} is {named} here by its name alone: the image has the hash {digits}, but the content of "
            f"the file has {file_hashes(named).content[:12]}",
            "warning",
        )
    for path in () if found is not None else claiming:
        if path != named:
            yield Notice(
                f"{path} claims the hash {digits}, but its content has "
                f"{file_hashes(path).content[:12]}: it is not used as the LoRA {name}",
                "warning",
            )


def _by_name(name: str, folders: Sequence[Path]) -> Path | None:
    try:
        return find_lora(name, folders)
    except PromptError:
        return None


def _by_hash(digits: str, folders: Sequence[Path], control: Control) -> tuple[Path | None, list[Path]]:
    """The file whose content has the hash, and those that only claim to have it.

    Files that claim it are looked at first, so that usually no other one is read.
    """
    files = [path for folder in folders for path in lora_files(folder)]
    claiming = [path for path in files if _claims(path, digits)]
    rest = [path for path in files if path not in claiming]

    # A claim is quick to read and easy to forge; what is taken has to have the hash itself.
    found = next((path for path in (*claiming, *rest) if _has_hash(path, digits, control)), None)
    return found, [path for path in claiming if path != found]


def _claims(path: Path, digits: str) -> bool:
    try:
        with open_tensors(path) as tensors:
            return tensors.metadata.get("sshs_model_hash", "").lower().startswith(digits.lower())
    except LoraloomError:
        return False  # a broken file is not the one that is looked for


def _has_hash(path: Path, digits: str, control: Control) -> bool:
    try:
        return has_hash(path, digits, control)
    except (LoraloomError, OSError):
        return False
