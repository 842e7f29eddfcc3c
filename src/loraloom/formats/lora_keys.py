"""Which key of a LoRA file is what: dialect, layers and roles, textual-inversion vectors that travel with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraloom.formats.adapter_checks import foreign_kinds, problem_of_layer, problem_of_vectors
from loraloom.formats.cloneofsimo import is_numbered_list, layer_names, numbered_key, pairs_of_list
from loraloom.formats.dialects import CLONEOFSIMO, Dialect, adapter_name, dialect_of
from loraloom.formats.entries import TensorInfo, show

__all__ = ["LoraKeys", "lora_keys"]

_BUNDLED = "bundle_emb."
_EMBEDDED = "<embed>"

_Numbered = Mapping[str, Mapping[int, Mapping[str, str]]]
"""Part of the model -> number of a layer -> role -> key, as cloneofsimo's files have it."""
_Embeddings = Mapping[str, Mapping[str, str]]
"""Word -> encoder -> key."""


@dataclass(frozen=True)
class LoraKeys:
    """``layers[layer name][role]`` is a key, and so is ``embeddings[word][encoder]``; ``unknown`` are the others.

    An encoder is ``clip_l``, ``clip_g``, or ``any`` where the file does not say. A file may mix dialects, as diffusers
    does: ``dialect`` is the one that most keys speak, ``dialects`` are all of them, that one first.
    """

    dialect: Dialect
    dialects: tuple[Dialect, ...]
    layers: Mapping[str, Mapping[str, str]]
    embeddings: Mapping[str, Mapping[str, str]]
    unknown: tuple[str, ...]
    problem: str | None
    """Why these keys, types and shapes do not make a LoRA; None where they do."""

    @property
    def title(self) -> str:
        """The dialects as people call them."""
        return " and ".join(dialect.title for dialect in self.dialects)


def lora_keys(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> LoraKeys | None:
    """Sort the keys of a file; None when none of them is a LoRA's.

    The code that says what a file is and the code that reads it both ask here, so that one never says LoRA where the
    other says none.
    """
    if is_numbered_list(infos):
        part, pairs = pairs_of_list(infos)
        return _numbered(infos, {part: pairs}, {}, [])

    numbered, embeddings, rest = _set_apart(infos, metadata)
    if numbered:
        return _numbered(infos, numbered, embeddings, rest)
    named = _by_dialect(rest)
    return _judged(infos, named, embeddings) if named.layers else None


def _set_apart(infos: Iterable[str], metadata: Mapping[str, str]) -> tuple[_Numbered, _Embeddings, list[str]]:
    """Keys of three forms that mean nothing to any dialect, so they are taken out first; and the others."""
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
    return numbered, embeddings, rest


@dataclass(frozen=True)
class _Named:
    """Keys whose names say what they are, by layer and role; ``dialects``: the one that most of them speak first.

    ``twice``: pairs of keys that name one tensor.
    """

    dialects: tuple[Dialect, ...]
    layers: Mapping[str, Mapping[str, str]]
    unknown: Sequence[str]
    twice: Sequence[tuple[str, str]]


def _by_dialect(keys: Iterable[str]) -> _Named:
    layers: dict[str, dict[str, str]] = {}
    spoken: Counter[str] = Counter()
    dialects: dict[str, Dialect] = {}
    unknown, twice = [], []
    for key in keys:
        found = dialect_of(key)
        if found is None:
            unknown.append(key)
            continue
        dialect, layer, role = found
        spoken[dialect.name] += 1
        dialects[dialect.name] = dialect
        # Two dialects in one file may name one tensor twice: the later one must not win in silence.
        if role in layers.setdefault(layer, {}):
            twice.append((layers[layer][role], key))
        layers[layer][role] = key
    return _Named(tuple(dialects[name] for name, _ in spoken.most_common()), layers, unknown, twice)


def _judged(infos: Mapping[str, TensorInfo], named: _Named, embeddings: _Embeddings) -> LoraKeys:
    problem = _problem(infos, named, embeddings)
    return LoraKeys(named.dialects[0], named.dialects, named.layers, embeddings, tuple(named.unknown), problem)


def _problem(infos: Mapping[str, TensorInfo], named: _Named, embeddings: _Embeddings) -> str | None:
    """The first reason for which these keys make no LoRA that can be used."""
    unknown, twice = named.unknown, named.twice
    if foreign := foreign_kinds(infos):
        key, kind = next(iter(foreign.items()))
        return f"holds {kind} layers ({key}), which this version does not read"

    if unknown:
        rest = f"the rest reads as the dialect of {named.dialects[0].title}"
        if named.dialects[0] is CLONEOFSIMO:
            rest = "the layers are numbered, and their count and shapes are those of no known version"
        first = show(unknown[0])
        return f"{len(unknown)} of {len(infos)} tensors belong to no LoRA layer, the first is {first}; {rest}"

    # PEFT can keep several adapters in one file. Without their names they look like one tensor given twice.
    if twice:
        names = sorted({name for pair in twice for key in pair if (name := adapter_name(key)) is not None})
        if len(names) > 1:
            return f"holds several adapters ({', '.join(map(show, names))}); save one of them to a file of its own"
        return f"names one tensor twice: {show(twice[0][0])} and {show(twice[0][1])}"

    # Shapes last: they can only be judged where every key is understood.
    vectors = (key for places in embeddings.values() for key in places.values())
    problems = [problem_of_layer(name, keys, infos) for name, keys in named.layers.items()]
    problems += [problem_of_vectors(key, infos[key]) for key in vectors]
    return next((problem for problem in problems if problem), None)


def _numbered(
    infos: Mapping[str, TensorInfo],
    parts: Mapping[str, Mapping[int, Mapping[str, str]]],
    embeddings: Mapping[str, Mapping[str, str]],
    unknown: list[str],
) -> LoraKeys:
    layers: dict[str, Mapping[str, str]] = {}
    for part, pairs in parts.items():
        ordered = [pairs[number] for number in sorted(pairs)]
        # With a gap nobody knows which layer a number means, so the whole part stays unknown.
        complete = sorted(pairs) == list(range(len(pairs))) and all(set(roles) == {"up", "down"} for roles in ordered)
        shapes = [(tuple(infos[roles["up"]].shape), tuple(infos[roles["down"]].shape)) for roles in ordered if complete]
        names = layer_names(part, shapes) if complete else None
        if names is None:
            unknown += [key for roles in ordered for key in roles.values()]
        else:
            layers.update(zip(names, ordered, strict=True))

    return _judged(infos, _Named((CLONEOFSIMO,), layers, unknown, []), embeddings)
