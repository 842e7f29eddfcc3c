"""The one writer of LoRA files: layers under kohya's names go in, a file in the chosen dialect comes out.

Every command that makes a LoRA writes through :func:`write_lora`, so no other code puts keys together. The file is read
back by this program's own reader before it takes its place: each layer must come out with the change that went in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.control import Control, keep_going
from loraloom.errors import AdapterError, LoraloomError, OutputError
from loraloom.formats.adapter_file import (
    AdapterTarget,
    content_hash,
    layer_keys,
    model_hashes,
    read_adapter_file,
    write_adapter_file,
)
from loraloom.formats.adapter_kinds import ADAPTERS, inner_roles, is_pair, kind_of, layout_of, rank_of, title_of
from loraloom.formats.dialects import KOHYA, PEFT, Dialect
from loraloom.formats.lora_factors import factors_of, product_norm
from loraloom.formats.tensors import open_tensors, write_tensors

__all__ = ["OUTPUT_DIALECTS", "Layers", "Words", "WrittenLora", "check_output", "write_lora"]

Layers = Mapping[str, Mapping[str, Tensor]]
"""Tensors by kohya's name of the layer, and by role."""
Words = Mapping[str, Mapping[str, Tensor]]
"""Textual-inversion vectors by word, and by encoder (``any``, ``clip_l``, ``clip_g``)."""

OUTPUT_DIALECTS: Mapping[str, Dialect] = {"kohya": KOHYA, "diffusers": PEFT}
"""What people call the dialects that can be written."""

_FAILING_DISK = "the disk or its cable may be failing; save to another disk"
_EXTRACT = Sentence("merge it into a checkpoint, then ", Action.EXTRACT_LORA, " a LoRA from that")


@dataclass(frozen=True)
class WrittenLora:
    """``padded``: lowest and highest rank of layers that were brought to the highest one; None where none was."""

    path: Path
    dialect: Dialect
    layers: int
    padded: tuple[int, int] | None = None
    embeddings: tuple[Path, ...] = ()
    """Where textual-inversion vectors are: the file itself (kohya), a file for each word beside it (diffusers)."""


def check_output(path: Path) -> None:
    """OutputError unless a LoRA can be written under this name: only safetensors has a place for its metadata."""
    if path.suffix.lower() != ".safetensors":
        raise OutputError(f"{path} does not end in .safetensors", "LoRAs are written as .safetensors")


def write_lora(
    path: Path,
    layers: Layers,
    *,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    dialect: Dialect = KOHYA,
    targets: Mapping[str, AdapterTarget] | None = None,
    words: Words | None = None,
    source: str = "",
    control: Control = keep_going,
) -> WrittenLora:
    """Write a LoRA file atomically, every floating-point tensor as ``dtype``, with the hashes that identify it.

    ``targets``, by kohya's name, are needed for diffusers' names; there alpha is multiplied into the factors, Tucker's
    middle tensor too, and the layers of a part are padded with zeros to one rank: most versions of diffusers take the
    first layer's rank for the alpha of all. ``source`` names in messages what was converted. DoRA's magnitudes are
    never rounded, since that would change the whole weight. Raises AdapterError for values that are not finite, or not
    as ``dtype``, and for a kind that the dialect cannot hold; OutputError when the file does not read back. ``control``
    is heeded between two tensors; what it ends writes nothing.
    """
    source, targets, words = source or str(path), targets or {}, words or {}
    layers = {name: {role: tensor.detach().cpu() for role, tensor in roles.items()} for name, roles in layers.items()}
    beside: dict[Path, dict[str, Tensor]] = {}
    padded = None

    # diffusers has no place for words inside of a LoRA file, so they get files of their own.
    if dialect is PEFT:
        _check_no_configuration(path)
        tensors, padded = _as_diffusers(layers, targets, source)
        beside = _word_files(path, words)
    else:
        tensors = _as_kohya(layers, targets, source) | _bundled(words)

    expected = _Expected(path, layers, targets, dialect, dtype, tuple(tensors))
    write_adapter_file(
        path, tensors, metadata=metadata, dtype=dtype, source=source, check=expected.check, control=control
    )
    for place, vectors in beside.items():
        write_tensors(place, vectors)
    embeddings = tuple(beside) or ((path,) if words else ())
    return WrittenLora(path, dialect, len(layers), padded, embeddings)


def _as_kohya(layers: Layers, targets: Mapping[str, AdapterTarget], source: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, roles in layers.items():
        tensors |= _kohya_keys(name, roles, targets.get(name), f"{source}: layer {name}")
    return tensors


def _as_diffusers(
    layers: Layers, targets: Mapping[str, AdapterTarget], source: str
) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    """The tensors by diffusers' names, and the smallest and largest rank where layers had to be padded."""
    unknown = [name for name in layers if name not in targets]
    if unknown:
        raise AdapterError(
            f"{source}: its layers belong to no model that is known here (the first is {unknown[0]})",
            "diffusers' names can be written for SD 1, SD 2 and SDXL",
        )

    ranks = {name: rank_of(roles) or 0 for name, roles in layers.items()}
    highest = _highest_ranks(ranks, targets)
    tensors: dict[str, Tensor] = {}
    for name, roles in layers.items():
        tensors |= _diffusers_keys(roles, targets[name], highest[targets[name].part], f"{source}: layer {name}")

    is_padded = any(rank < highest[targets[name].part] for name, rank in ranks.items())
    return tensors, (min(ranks.values()), max(ranks.values())) if is_padded else None


# ---------------------------------------------------------------------------------------- keys


def _kohya_keys(name: str, roles: Mapping[str, Tensor], target: AdapterTarget | None, where: str) -> dict[str, Tensor]:
    """The tensors as they are, with an alpha; factors of convolutions in four dimensions, as web UIs want them."""
    if kind_of(roles) is None:
        raise AdapterError(f"{where} is made of {', '.join(sorted(roles))}", "the file is damaged")
    roles = dict(roles)
    if "down" in roles or "up" in roles:
        factors = factors_of(_inner(roles), where)
        roles.setdefault("alpha", torch.tensor(factors.scale * factors.rank))
        if target is not None and target.kind != "linear" and "mid" not in roles:
            roles["down"] = roles["down"].reshape(factors.rank, -1, *(factors.kernel or (1, 1)))
            roles["up"] = roles["up"].reshape(-1, factors.rank, 1, 1)
    return layer_keys(name, roles)


def _highest_ranks(ranks: Mapping[str, int], targets: Mapping[str, AdapterTarget]) -> dict[str, int]:
    """By part: diffusers loads each of them by itself."""
    highest: dict[str, int] = {}
    for name, rank in ranks.items():
        part = targets[name].part
        highest[part] = max(rank, highest.get(part, 0))
    return highest


def _diffusers_keys(roles: Mapping[str, Tensor], target: AdapterTarget, rank: int, where: str) -> dict[str, Tensor]:
    if not is_pair(_inner(roles)):
        raise AdapterError(f"{where} is {title_of(roles)}; diffusers reads LoRA and DoRA only", _EXTRACT)
    factors = factors_of(_inner(roles), where)
    down, up = factors.without_scale()
    down = torch.cat([down, down.new_zeros(rank - len(down), down.shape[1])])
    up = torch.cat([up, up.new_zeros(len(up), rank - up.shape[1])], dim=1)
    ones = tuple(1 for _ in target.shape[2:])
    made = {
        "down": down.reshape(rank, -1, *(factors.kernel if target.kind == "conv3x3" else ones)),
        "up": up.reshape(-1, rank, *ones),
    }
    layout = layout_of(roles)
    if layout is not None and layout.wraps:
        try:
            made |= ADAPTERS.load(str(kind_of(roles))).beside_factors(roles, target, where)
        except AdapterError as error:
            raise AdapterError(error.problem, _EXTRACT) from error
    return layer_keys(f"{target.part}.{target.diffusers_name}", made, PEFT)


def _inner(roles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the adapter inside, without DoRA's magnitudes."""
    inside = inner_roles(roles)
    return {role: tensor for role, tensor in roles.items() if role in inside}


def _bundled(words: Words) -> dict[str, Tensor]:
    """The vectors as the web UI (1.6 and later) finds them in a LoRA file."""
    keys = {}
    for word, places in words.items():
        for place, vectors in places.items():
            rows = vectors[None] if vectors.ndim == 1 else vectors
            inside = "string_to_param.*" if place == "any" else place
            keys[f"bundle_emb.{word}.{inside}"] = rows.clone()
    return keys


def _word_files(path: Path, words: Words) -> dict[Path, dict[str, Tensor]]:
    """diffusers has no place for words in a LoRA: each one gets a file of its own beside it."""
    files = {}
    for number, (word, places) in enumerate(words.items(), start=1):
        place = path.with_name(f"{path.stem}{f'-{number}' if len(words) > 1 else ''}.ti.safetensors")
        files[place] = {word if where == "any" else where: vectors.clone() for where, vectors in places.items()}
    return files


def _check_no_configuration(path: Path) -> None:
    """A file of this name is read with the configuration beside it, which is another LoRA's."""
    config = path.with_name("adapter_config.json")
    if path.stem == "adapter_model" and config.exists():
        raise OutputError(f"{path} would be read with the {config.name} beside it", "choose another name, or folder")


# -------------------------------------------------------------------------- what was written, read back


@dataclass(frozen=True)
class _Expected:
    """What a file must read back as before it takes its place."""

    path: Path
    layers: Layers
    targets: Mapping[str, AdapterTarget]
    dialect: Dialect
    dtype: torch.dtype
    keys: tuple[str, ...]

    def check(self, written: Path) -> None:
        """OutputError unless keys, checksum and the change of every layer are those that were to be written."""
        try:
            with open_tensors(written) as tensors:
                if set(tensors) != set(self.keys):
                    raise OutputError("its tensors have other names")
                tensors.verify()
                is_plain = tensors.kind == "safetensors"
                hashed = content_hash(written) if is_plain else model_hashes(tensors, tensors.metadata)[0]
                if hashed != tensors.metadata.get("sshs_model_hash"):
                    raise OutputError("its checksum is wrong")
            found = read_adapter_file(written).layers
        except LoraloomError as error:
            problem = error.problem.replace(str(written), self.path.name)
            raise OutputError(f"{self.path}: the written file cannot be read back: {problem}", _FAILING_DISK) from error
        names = {self._name_in_file(name): name for name in self.layers}
        wrong = sorted(set(names) ^ set(found)) or [
            name for there, name in names.items() if not self._is_same(self.layers[name], found[there])
        ]
        if wrong:
            raise OutputError(
                f"{self.path} was not written: read back, layer {wrong[0]} is not what it was "
                f"({len(wrong)} of {len(self.layers)} are not)",
                "this is a fault of this program: please report it, with the command",
            )

    def _name_in_file(self, name: str) -> str:
        if self.dialect is KOHYA:
            return name
        return f"{self.targets[name].part}.{self.targets[name].diffusers_name}"

    def _is_same(self, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
        """Whether the change is the same, but for the rounding of the factors to the file's type."""
        if "down" not in wanted:
            return set(wanted) == set(found) and all(self._is_cast(wanted[role], found[role]) for role in wanted)
        around = [set(roles) - inner_roles(roles) for roles in (wanted, found)]
        if around[0] != around[1]:
            return False
        if not all(torch.equal(wanted[role].float().flatten(), found[role].flatten()) for role in around[0]):
            return False
        before, after = factors_of(_inner(wanted), ""), factors_of(_inner(found), "")
        if (len(before.up), before.down.shape[1]) != (len(after.up), after.down.shape[1]):
            return False
        down, up = before.without_scale()
        seen_down, seen_up = after.without_scale()
        apart = product_norm(torch.cat([up, seen_up], dim=1), torch.cat([down, -seen_down]))
        return apart <= self._rounding(down, up, before.scale)

    def _is_cast(self, wanted: Tensor, found: Tensor) -> bool:
        wanted = wanted.to(self.dtype) if wanted.is_floating_point() else wanted
        return torch.equal(wanted.flatten(), found.flatten())

    def _rounding(self, down: Tensor, up: Tensor, scale: float) -> float:
        """How far the product can be off (Frobenius norm) when both factors and alpha are rounded to the file's type.

        ``down`` and ``up`` have the scale in them; the file may hold them without.
        """
        info = torch.finfo(self.dtype)
        # Below the normal range values are rounded to a fixed step.
        step = info.smallest_normal * info.eps * max(1.0, math.sqrt(abs(scale)))
        norms = [float(torch.linalg.vector_norm(factor.double())) for factor in (down, up)]
        counts = down.numel(), up.numel()
        lost = [info.eps * norm + step * math.sqrt(count) for norm, count in zip(norms, counts, strict=True)]
        # float32 arithmetic on the way adds a little.
        relative = info.eps + 1e-5
        return lost[0] * norms[1] + lost[1] * norms[0] + lost[0] * lost[1] + relative * norms[0] * norms[1]
