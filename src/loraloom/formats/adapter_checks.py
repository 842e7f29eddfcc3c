"""Whether the tensors of a LoRA file can be what their keys say: types and shapes, looked at once, before any is used.

Nothing is read here: types and shapes stand in the file's header. What fits a layer of a model is decided where the
model is known (:mod:`loraloom.adapters`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from loraloom.formats.dialects import FOREIGN_SUFFIXES, Shaped, kind_of, rank_of
from loraloom.formats.entries import TensorInfo, show

__all__ = [
    "EIGHT_BIT_FLOATS",
    "Doubt",
    "doubts_about",
    "foreign_kinds",
    "problem_of_layer",
    "problem_of_vectors",
    "widened",
]

EIGHT_BIT_FLOATS: Mapping[torch.dtype, torch.dtype] = {
    getattr(torch, name): wider
    for name, wider in (
        # Every value of these is one of float16; powers of two alone (e8m0) reach further.
        ("float8_e4m3fn", torch.float16),
        ("float8_e5m2", torch.float16),
        ("float8_e4m3fnuz", torch.float16),
        ("float8_e5m2fnuz", torch.float16),
        ("float8_e8m0fnu", torch.float32),
    )
    if hasattr(torch, name)
}
"""Types that torch stores but hardly calculates with, and the smallest type that holds all of their values."""

_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, *EIGHT_BIT_FLOATS}
_NUMBERS = _FLOATS | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
"""Types of a single number: sd-scripts writes alphas that were not given as whole numbers."""

_MATRIX, _FACTOR, _KERNEL = (2,), (2, 4), (4,)
_DIMENSIONS: Mapping[str, tuple[int, ...]] = {
    "down": _FACTOR,
    "up": _FACTOR,
    "mid": _KERNEL,
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _FACTOR),
    **dict.fromkeys(("hada_t1", "hada_t2", "lokr_t2"), _KERNEL),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b"), _MATRIX),
    **dict.fromkeys(("lokr_w2", "lokr_w2_a", "lokr_w2_b"), _FACTOR),
    "diff": (1, 2, 4),
    **dict.fromkeys(("diff_b", "w_norm", "b_norm"), (1,)),
    "dora_scale": (1, 2, 4),
    "weight": (1, 2, 4),
}
"""How many axes the tensor of a role may have. ``alpha`` and ``on_input`` hold one number in any shape."""

_PRODUCTS: tuple[tuple[str, str, str], ...] = (
    ("up", "down", "mid"),
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b", ""),
    ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
"""Left factor, right factor, and the core of LyCORIS' Tucker form that may stand between them."""


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of any shape, or of 8-bit floats as a copy in a type that can be calculated with, value for value."""
    wider = EIGHT_BIT_FLOATS.get(tensor.dtype)
    return tensor if wider is None else tensor.to(wider)


def problem_of_layer(name: str, keys: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> str | None:
    """Why the tensors of a layer are no adapter, or None. ``keys``: by role; ``infos``: by key."""
    roles = {role: infos[key] for role, key in keys.items()}
    if kind_of(roles) is None:
        return f"layer {name} holds {', '.join(sorted(roles))}: together they are no kind of adapter"
    for role, info in roles.items():
        if problem := _problem_of_tensor(role, info):
            return f"{show(keys[role])} {problem}"
    if lacking := _lacking(roles):
        return f"layer {name} has no {lacking} tensor: the file is incomplete"
    for left, right, core in _PRODUCTS:
        if left in roles and not _fits(roles, left, right, core):
            shapes = [f"{role} {tuple(roles[role].shape)}" for role in (left, core, right) if role in roles]
            return f"the factors of layer {name} do not fit one another: {', '.join(shapes)}"
    return None


def problem_of_vectors(key: str, info: TensorInfo) -> str | None:
    """Why a tensor holds no vectors of textual inversion, (n, width) or (width,), or None."""
    if info.dtype not in _FLOATS:
        kind = str(info.dtype).removeprefix("torch.")
        return f"{show(key)} holds {kind} values; the vectors of a word are floating-point numbers"
    if len(info.shape) not in (1, 2) or info.numel == 0:
        return f"{show(key)} has shape {tuple(info.shape)}, where the vectors of a word belong"
    return None


def _lacking(roles: Mapping[str, TensorInfo]) -> str | None:
    """A tensor without which the others have no product."""
    needed = [pair for *pair, _ in _PRODUCTS if roles.keys() & set(pair)]
    if any(role.startswith("hada_") for role in roles):
        needed = [["hada_w1_a", "hada_w1_b"], ["hada_w2_a", "hada_w2_b"]]
    for side in ("lokr_w1", "lokr_w2"):
        if any(role.startswith("lokr_") for role in roles) and not roles.keys() & {side, f"{side}_a", f"{side}_b"}:
            return side
    return next((role for pair in needed for role in pair if role not in roles), None)


def _problem_of_tensor(role: str, info: TensorInfo) -> str | None:
    kind = str(info.dtype).removeprefix("torch.")
    if role in ("alpha", "on_input"):
        allowed = _NUMBERS | ({torch.bool} if role == "on_input" else set())
        if info.numel != 1:
            return f"has shape {tuple(info.shape)}, where one number belongs"
        return None if info.dtype in allowed else f"is {kind}, where a number belongs"
    if info.dtype not in _FLOATS:
        return f"holds {kind} values; the weights of an adapter are floating-point numbers"
    if len(info.shape) not in _DIMENSIONS[role]:
        return f"has shape {tuple(info.shape)}, {' or '.join(map(str, _DIMENSIONS[role]))} axes were expected"
    return f"is empty, shape {tuple(info.shape)}" if info.numel == 0 else None


def _fits(roles: Mapping[str, TensorInfo], left: str, right: str, core: str) -> bool:
    """Whether ``left @ right``, or with a core in the middle the product of the three, exists."""
    first, second = roles[left].shape, roles[right].shape
    # The kernel is in the right factor, or in the core where there is one.
    if any(size != 1 for size in (*first[2:], *(second[2:] if core in roles else ()))):
        return False
    if core not in roles:
        return first[1] == second[0]
    # LoCon stores up (out, r), mid (r, r, kh, kw), down (r, in); LoHa and LoKr the left factor the other way round.
    rank = first[1] if left == "up" else first[0]
    middle = roles[core].shape
    return middle[:2] == (rank, second[0]) and (left != "up" or middle[0] == middle[1])


@dataclass(frozen=True)
class Doubt:
    """Something about layers that can be used, which their owner may not expect."""

    what: str
    """``alpha 0``, ``negative alpha`` or ``rank above size``."""
    layers: tuple[str, ...]
    sentence: str


_ALPHA_0 = (
    "have alpha 0, which changes nothing: so in AUTOMATIC1111, Forge, ComfyUI and diffusers, while sd-scripts and "
    "LyCORIS, where they go on training from the file, take 0 for the rank"
)
_NEGATIVE = "have a negative alpha: they act with the opposite sign, here and in every program"
_TALL = (
    "have a rank above what their size can hold: the file is larger than it needs to be, resizing makes it smaller "
    "without a loss"
)


def doubts_about(layers: Mapping[str, Mapping[str, Shaped]], alpha: Callable[[str], float | None]) -> tuple[Doubt, ...]:
    """What is odd about the layers (name to role to type and shape); ``alpha`` gives the stored alpha of a layer."""
    zero, negative, tall = [], [], []
    for name, roles in layers.items():
        stored = alpha(name)
        if stored is not None and rank_of(roles) is not None:
            zero += [name] * (stored == 0)
            negative += [name] * (stored < 0)
        if "down" in roles and "up" in roles and "mid" not in roles:
            down, up = roles["down"].shape, roles["up"].shape
            columns = torch.Size(down[1:]).numel()
            tall += [name] * (down[0] > min(up[0], columns))
    found = (("alpha 0", zero, _ALPHA_0), ("negative alpha", negative, _NEGATIVE), ("rank above size", tall, _TALL))
    return tuple(
        Doubt(what, tuple(names), f"{len(names)} of {len(layers)} layers {sentence} (the first is {names[0]})")
        for what, names, sentence in found
        if names
    )


def foreign_kinds(keys: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Kinds of adapter that are not read, by a key that says so."""
    return {key: kind for key in keys for suffix, kind in FOREIGN_SUFFIXES.items() if key.endswith(suffix)}
