"""What a library keeps of a model file: kind, family, names, trigger words, cheap hashes, and who it is by content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import FileError
from loraloom.formats.adapter_kinds import rank_of, title_of
from loraloom.formats.file_hashes import is_hash
from loraloom.formats.foreign import what_it_is
from loraloom.formats.lora_family import family_name
from loraloom.formats.lora_keys import LoraKeys, lora_keys
from loraloom.formats.tensors import TensorFile, open_tensors
from loraloom.models.checkpoint import as_checkpoint
from loraloom.reading import open_file, read_text

__all__ = ["Identity", "fingerprint", "identify", "sidecar_texts", "tag_counts"]

SAMPLES = 16
SAMPLE_BYTES = 1 << 16
MAX_TAGS = 60


@dataclass(frozen=True)
class Identity:
    """``kind``: checkpoint, lora or other; ``family``: sd1, sd2, sdxl or empty; ``adapter``: LoRA, LoHa ...

    ``claim``: the first 12 digits of the hash that the metadata says the tensors have; nobody has checked it.
    """

    fingerprint: str
    kind: str
    family: str = ""
    adapter: str = ""
    rank: str = ""
    title: str = ""
    triggers: str = ""
    tags: str = ""
    base: str = ""
    description: str = ""
    claim: str = ""


def fingerprint(path: Path) -> str:
    """Who a file is by its content, cheaply: its size, its beginning and end, and 14 places between them.

    Of a file of at most 1 MiB that is every byte. Two files with one fingerprint are the same for all that a library
    does; only ``sha256`` proves it. Raises FileError where it cannot be read.
    """
    try:
        size = path.stat().st_size
        found = hashlib.sha256(size.to_bytes(8, "little"))
        with open_file(path) as file:
            if size <= SAMPLES * SAMPLE_BYTES:
                found.update(file.read())
            else:
                for index in range(SAMPLES):
                    file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                    found.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise FileError(f"{path}: cannot be read, {error.strerror or error}") from error
    return found.hexdigest()[:32]


def identify(path: Path) -> Identity:
    """Read names, shapes and metadata of a file. Raises FileError for one that cannot be read."""
    known = fingerprint(path)
    with open_tensors(path) as tensors:
        infos = {name: tensors.info(name) for name in tensors}
        said, beside = tensors.metadata, sidecar_texts(path.with_suffix(".json"))
        texts = {
            "title": said.get("modelspec.title") or said.get("ss_output_name", ""),
            "triggers": ", ".join(
                dict.fromkeys(
                    text for text in (said.get("modelspec.trigger_phrase"), beside.get("activation text")) if text
                )
            ),
            "tags": _tags(said),
            "base": said.get("ss_sd_model_name", ""),
            "description": " ".join(
                text
                for text in (said.get("modelspec.description"), beside.get("description"), beside.get("notes"))
                if text
            ),
            "claim": _claim(said),
        }
        if (checkpoint := as_checkpoint(path, tensors)) is not None:
            return Identity(known, "checkpoint", checkpoint.family.name, **texts)
        keys = lora_keys(infos, said)
        if keys is None:
            return Identity(known, "other", adapter=what_it_is(infos), **texts)
        return _lora(known, tensors, keys, texts)


def _lora(known: str, tensors: TensorFile, keys: LoraKeys, texts: Mapping[str, str]) -> Identity:
    layers = {name: {role: tensors.info(key) for role, key in roles.items()} for name, roles in keys.layers.items()}
    kinds = Counter(title_of(roles) for roles in layers.values()) or Counter({"LoRA": 1})
    ranks = {found for roles in layers.values() if (found := rank_of(roles)) is not None}
    rank = f"{min(ranks)}-{max(ranks)}" if len(ranks) > 1 else "".join(map(str, ranks))
    family = family_name(layers, tensors.metadata)
    return Identity(known, "lora", family, kinds.most_common(1)[0][0], rank, **texts)


def tag_counts(metadata: Mapping[str, str]) -> Counter[str]:
    """How often each tag was in the captions, over all folders (``ss_tag_frequency``); empty where it is missing."""
    counts: Counter[str] = Counter()
    with suppress(ValueError, RecursionError):
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        for tags in folders.values() if isinstance(folders, dict) else ():
            for tag, count in tags.items() if isinstance(tags, dict) else ():
                if isinstance(count, int) and count > 0:
                    counts[tag.strip()] += count
    return counts


def _claim(metadata: Mapping[str, str]) -> str:
    claimed = metadata.get("sshs_model_hash", "").lower()
    return claimed[:12] if is_hash(claimed) else ""


def _tags(metadata: Mapping[str, str]) -> str:
    said = [tag.strip() for tag in metadata.get("modelspec.tags", "").split(",") if tag.strip()]
    return ", ".join([*said, *(tag for tag, _ in tag_counts(metadata).most_common(MAX_TAGS))])


def sidecar_texts(side: Path) -> dict[str, str]:
    """The texts of the web UI's ``NAME.json`` beside a file; empty where there is none that can be read."""
    with suppress(FileError, ValueError, RecursionError):
        told = json.loads(read_text(side))
        if isinstance(told, dict):
            return {key: value for key, value in told.items() if isinstance(value, str)}
    return {}
