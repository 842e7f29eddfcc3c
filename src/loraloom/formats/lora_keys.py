"""Which key of a LoRA file is what: dialect, layers and roles, textual-inversion vectors that travel with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.formats.cloneofsimo import is_numbered_list, layer_names, numbered_key, pairs_of_list
from loraloom.formats.dialects import CLONEOFSIMO, Dialect, Shaped, recognise

__all__ = ["LoraKeys", "lora_keys"]

_BUNDLED = "bundle_emb."
_EMBEDDED = "<embed>"


@dataclass(frozen=True)
class LoraKeys:
    """``layers[layer name][role]`` is a key, and so is ``embeddings[word][encoder]``; ``unknown`` are the others.

    An encoder is ``clip_l``, ``clip_g``, or ``any`` where the file does not say.
    """

    dialect: Dialect
    layers: Mapping[str, Mapping[str, str]]
    embeddings: Mapping[str, Mapping[str, str]]
    unknown: tuple[str, ...]


def lora_keys(infos: Mapping[str, Shaped], metadata: Mapping[str, str]) -> LoraKeys | None:
    """Sort the keys of a file; None when it is no LoRA of a known dialect."""
    if is_numbered_list(infos):
        part, pairs = pairs_of_list(infos)
        return _numbered(infos, {part: pairs}, {}, [])
    numbered: dict[str, dict[int, dict[str, str]]] = {}
    embeddings: dict[str, dict[str, str]] = {}
    rest = []
    for key in infos:
        if (split := numbered_key(key)) is not None:
            part, number, role = split
            numbered.setdefault(part, {}).setdefault(number, {})[role] = key
        elif metadata.get(key) == _EMBEDDED:
            embeddings.setdefault(key, {})["any"] = key
        elif key.startswith(_BUNDLED):
            word, _, place = key.removeprefix(_BUNDLED).rpartition(".string_to_param.")
            if not word:
                word, _, place = key.removeprefix(_BUNDLED).rpartition(".")
            encoder = place if place in ("clip_l", "clip_g") else "any"
            embeddings.setdefault(word, {})[encoder] = key
        else:
            rest.append(key)
    if numbered:
        return _numbered(infos, numbered, embeddings, rest)
    dialect = recognise(rest)
    if dialect is None:
        return None
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for key in rest:
        found = dialect.split(key)
        if found is None:
            unknown.append(key)
        else:
            layers.setdefault(found[0], {})[found[1]] = key
    return LoraKeys(dialect, layers, embeddings, tuple(unknown))


def _numbered(
    infos: Mapping[str, Shaped],
    parts: Mapping[str, Mapping[int, Mapping[str, str]]],
    embeddings: Mapping[str, Mapping[str, str]],
    unknown: list[str],
) -> LoraKeys:
    layers: dict[str, Mapping[str, str]] = {}
    for part, pairs in parts.items():
        ordered = [pairs[number] for number in sorted(pairs)]
        complete = sorted(pairs) == list(range(len(pairs))) and all(set(roles) == {"up", "down"} for roles in ordered)
        shapes = [(tuple(infos[roles["up"]].shape), tuple(infos[roles["down"]].shape)) for roles in ordered if complete]
        names = layer_names(part, shapes) if complete else None
        if names is None:
            unknown += [key for roles in ordered for key in roles.values()]
        else:
            layers.update(zip(names, ordered, strict=True))
    return LoraKeys(CLONEOFSIMO, layers, embeddings, tuple(unknown))
