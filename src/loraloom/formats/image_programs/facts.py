"""What readers of programs' JSON share: values by name, whatever type they have, and their names here."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from loraloom.errors import FileFormatError

__all__ = ["fields_of", "json_object", "lora_tag", "model_name", "plain", "without_tags"]

_LONGEST = 200
_TAG = re.compile(r"<(?:lora|lyco):[^<>]*>")


def json_object(text: str, *, program: str = "") -> dict[str, Any]:
    """The JSON object that a text is. With a ``program`` FileFormatError for other texts, without one nothing."""
    if not program and not text.lstrip().startswith("{"):
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not program:
            return {}
        raise FileFormatError(
            f"what {program} wrote into the image is damaged: {error}", "give the prompt and the settings yourself"
        ) from error
    if isinstance(data, dict):
        return data
    if program:
        raise FileFormatError(f"what {program} wrote into the image is not a JSON object", "give the settings yourself")
    return {}


def plain(value: object) -> str:
    """A value as text: a string as it is, a whole number without its point, anything else as JSON, cut short."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def fields_of(data: Mapping[str, Any], names: Mapping[str, str], *, without: Container[str] = ()) -> dict[str, str]:
    """The values under the web UI's names where they are known, under the program's own where they are not.

    Values that say nothing (None, empty, False) are left out, and so are the keys ``without``.
    """
    wanted = {key: value for key, value in data.items() if key not in without and not _is_nothing(value)}
    ordered = [*(key for key in names if key in wanted), *(key for key in wanted if key not in names)]
    return {names.get(key, key): plain(wanted[key]) for key in ordered}


def model_name(value: object) -> str:
    """The name of a model file: ``folder/some.safetensors`` is ``some``."""
    text = plain(value)
    name = PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name
    for suffix in (".safetensors", ".ckpt", ".pt", ".sft", ".gguf"):
        name = name.removesuffix(suffix)
    return name


def lora_tag(name: object, weights: Sequence[object]) -> str:
    """``<lora:name:weight>`` with one weight, or with those of text encoder and U-Net; nothing without a name."""
    text = model_name(name).replace("<", "").replace(">", "").strip()
    if not text or text == "None":
        return ""
    return f"<lora:{text}:{':'.join(plain(weight) for weight in weights)}>"


def without_tags(prompt: str, remarks: list[str]) -> str:
    """The prompt of a program in which ``<lora:name:1>`` is text: left out, since it would act here, and reported."""
    remarks += [f"{tag} in its prompt is text there: it is left out" for tag in _TAG.findall(prompt)]
    return _TAG.sub("", prompt)


def _is_nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, (str, list, dict)) and not value)
