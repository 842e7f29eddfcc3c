"""What a file says of itself, edited: title, trigger words, description, notes, a preview picture; and side files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from loraloom.actions import Action, Sentence
from loraloom.control import Control, keep_going
from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, SettingsError
from loraloom.formats.adapter_file import model_hashes
from loraloom.formats.files import write_bytes, write_text
from loraloom.formats.header_edit import write_with_metadata
from loraloom.formats.lora_keys import lora_keys
from loraloom.formats.peft_config import peft_configs
from loraloom.formats.pictures import rgb_of, rgb_picture
from loraloom.formats.tensors import open_tensors
from loraloom.models.family import FAMILIES
from loraloom.reading import read_text
from loraloom.weights.identify import identify

__all__ = ["SHORT_KEYS", "MetadataEdit", "edit_metadata", "thumbnail_url", "write_sidecars"]

SHORT_KEYS: Mapping[str, str] = {
    "title": "modelspec.title",
    "trigger": "modelspec.trigger_phrase",
    "description": "modelspec.description",
    "notes": "modelspec.usage_hint",
    "author": "modelspec.author",
    "license": "modelspec.license",
    "tags": "modelspec.tags",
    "preview": "modelspec.thumbnail",
    "weight": "loraloom.preferred_weight",
}
"""Short names of metadata keys (ModelSpec 1.0.1, where it has one)."""
THUMBNAIL_PX = 256
PREVIEW_PX = 512
_COMPUTED = ("sshs_model_hash", "sshs_legacy_hash")
_STRENGTH = ("lora_adapter_metadata",)
"""Keys that say how strong the layers are, not what people call the file."""


@dataclass(frozen=True)
class MetadataEdit:
    """``changed`` and ``removed``: keys whose values are others now, and those that are gone."""

    path: Path
    changed: tuple[str, ...]
    removed: tuple[str, ...]


def edit_metadata(
    path: Path,
    output: Path,
    changes: Mapping[str, str],
    *,
    remove: Sequence[str] = (),
    preview: Path | None = None,
    control: Control = keep_going,
) -> MetadataEdit:
    """Write ``path`` to ``output``, its metadata changed and its tensors byte for byte the same.

    Keys may be short (:data:`SHORT_KEYS`). ``sshs_model_hash`` stays true, since it is of the tensors;
    ``sshs_legacy_hash``, which counts the ``ss_*`` metadata in, is computed again when one of those changes.
    Raises SettingsError for a key that is computed or cannot be removed because it is not there, OutputError for an
    output that is no .safetensors file. ``control`` is heeded while the tensors are read and copied.
    """
    if output.suffix.lower() != ".safetensors":
        raise OutputError(f"{output} does not end in .safetensors", "only safetensors files have metadata")
    with open_tensors(path) as tensors:
        before = dict(tensors.metadata)
        wanted = {SHORT_KEYS.get(key, key): value for key, value in changes.items()}
        if preview is not None:
            wanted[SHORT_KEYS["preview"]] = thumbnail_url(preview)
        gone = [SHORT_KEYS.get(key, key) for key in remove]
        _check_edit(path, before, wanted, gone, _strength_left_behind(path, output, before))

        # The old hash counts the ss_* keys in: left as it was, the web UI would not know the file again.
        after = {key: value for key, value in (before | wanted).items() if key not in gone}
        touched = {key for key in (*wanted, *gone) if before.get(key) != after.get(key)}
        is_lora = lora_keys({key: tensors.info(key) for key in tensors}, before) is not None
        if "sshs_legacy_hash" in before and any(key.startswith("ss_") for key in touched) and is_lora:
            after["sshs_legacy_hash"] = model_hashes(tensors, after, control)[1]

    write_with_metadata(path, output, after, control)
    return MetadataEdit(output, tuple(key for key in wanted if key in touched), tuple(gone))


def _check_edit(
    path: Path,
    before: Mapping[str, str],
    wanted: Mapping[str, str],
    gone: Sequence[str],
    left_behind: Sequence[str],
) -> None:
    """SettingsError with everything that cannot be done, ``left_behind`` included."""
    problems = [f"{key} is computed from the file" for key in (*wanted, *gone) if key in _COMPUTED]
    problems += [
        f"{key} holds the alphas of the layers: without it, or with another value, the LoRA has another effect"
        for key in (*wanted, *gone)
        if key in _STRENGTH
    ]
    problems += left_behind

    # Asked for twice, or for nothing: most likely a name that was mistyped, so nothing is written at all.
    problems += [f"{path} has no metadata {key!r} to remove" for key in gone if key not in before]
    problems += [f"{key} is both set and removed" for key in gone if key in wanted]
    problems += ["a metadata key cannot be empty" for key in wanted if not key.strip()]
    if not problems:
        return

    hint = Sentence(Action.LIST_METADATA.of(file=path), " lists what is there")
    if left_behind:
        hint = Sentence(hint, "; ", Action.CONVERT_LORA, " makes one file of both")
    raise SettingsError(problems, hint)


def _strength_left_behind(path: Path, output: Path, metadata: Mapping[str, str]) -> list[str]:
    """PEFT keeps alphas in a file beside the LoRA, which a copy under another name would be read without."""
    beside = peft_configs(path, metadata) != peft_configs(output, metadata)
    if not beside or output.resolve() == path.resolve():
        return []
    return [f"the alphas of {path} are in the adapter_config.json beside it, which {output} would be read without"]


def thumbnail_url(picture: Path) -> str:
    """A picture as ModelSpec keeps it: a JPEG of at most 256 px a side as a ``data:`` URL."""
    data = io.BytesIO()
    _opened(picture, THUMBNAIL_PX).save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _opened(picture: Path, size_px: int) -> Image.Image:
    image = rgb_picture(picture)
    image.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    return image


def write_sidecars(path: Path, *, preview: Path | None = None) -> list[Path]:
    """Write what the web UI reads beside a file: ``NAME.json``, and ``NAME.preview.png`` when there is a picture.

    The texts come from the file's metadata; what else an existing ``NAME.json`` says is kept. The picture is
    ``preview``, or the thumbnail in the metadata. Raises OutputError rather than replace a picture that is there.
    """
    known = identify(path)
    with open_tensors(path) as tensors:
        metadata = dict(tensors.metadata)
    side = path.with_suffix(".json")
    told = _read_sidecar(side)
    said: dict[str, Any] = {
        "description": metadata.get("modelspec.description"),
        "sd version": FAMILIES.load(known.family).web_ui_version if known.family in FAMILIES else None,
        "activation text": metadata.get("modelspec.trigger_phrase"),
        "notes": metadata.get("modelspec.usage_hint"),
    }
    with suppress(ValueError, KeyError):
        said["preferred weight"] = float(metadata["loraloom.preferred_weight"])
    image = _preview_bytes(preview, metadata.get("modelspec.thumbnail", ""))
    picture = path.with_name(f"{path.stem}.preview.png")
    if image is not None and picture.exists():
        raise OutputError(f"{picture} exists already", "move it away to write another")
    write_text(side, json.dumps(told | {key: value for key, value in said.items() if value is not None}, indent=4))
    if image is None:
        return [side]
    write_bytes(picture, image)
    return [side, picture]


def _read_sidecar(side: Path) -> dict[str, Any]:
    try:
        told = json.loads(read_text(side))
    except MissingFileError:
        return {}
    except (FileError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{side}: is not JSON that can be extended", "move it away to write a new one") from error
    if not isinstance(told, dict):
        raise FileFormatError(f"{side}: is not a JSON table", "move it away to write a new one")
    return told


def _preview_bytes(preview: Path | None, thumbnail: str) -> bytes | None:
    """A PNG of the picture, None when there is none."""
    data = io.BytesIO()
    if preview is not None:
        _opened(preview, PREVIEW_PX).save(data, "PNG")
        return data.getvalue()
    _, comma, encoded = thumbnail.partition(";base64,")
    if not comma:
        return None
    try:
        rgb_of(base64.b64decode(encoded, validate=True)).save(data, "PNG")
    except (ValueError, FileError):
        return None
    return data.getvalue()
