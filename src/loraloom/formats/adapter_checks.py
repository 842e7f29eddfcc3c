"""Whether the tensors of a LoRA file can be what their keys say: types and shapes, looked at once, before any is used.

Nothing is read here: types and shapes are in the file's header. What fits a layer of a model is decided where the model
is known (:mod:`loraloom.adapters`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from loraloom.formats.adapter_kinds import Shaped, form_of, inner_roles, layout_of, rank_of
from loraloom.formats.dialects import FOREIGN_SUFFIXES, dialect_of
from loraloom.formats.entries import TensorInfo, show
from loraloom.formats.key_layout import Product

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


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of any shape, or of 8-bit floats as a copy in a type that can be calculated with, value for value."""
    wider = EIGHT_BIT_FLOATS.get(tensor.dtype)
    return tensor if wider is None else tensor.to(wider)


def problem_of_layer(name: str, keys: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> str | None:
    """Why the tensors of a layer are no adapter, or None. ``keys``: by role; ``infos``: by key."""
    roles = {role: infos[key] for role, key in keys.items()}
    layout = layout_of(roles)
    if layout is None:
        return f"layer {name} holds {', '.join(sorted(roles))}: together they do not make an adapter"

    for role, info in roles.items():
        if problem := _problem_of_tensor(role, info):
            return f"{show(keys[role])} {problem}"

    # A DoRA is wrapped around another kind: the one inside has to be complete as well, or it would have no product.
    inside = [inner for inner in (layout, layout_of(inner_roles(roles))) if inner is not None]
    if lacking := next(filter(None, (one.lacking(roles) for one in inside)), None):
        return f"layer {name} has no {lacking} tensor: the file is incomplete"

    # Last, since only tensors that are all there can be said not to fit one another.
    for product in (product for one in inside for product in one.products):
        if product.left in roles and not _fits(roles, product):
            parts = product.left, product.core, product.right
            shapes = [f"{role} {tuple(roles[role].shape)}" for role in parts if role in roles]
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


def _problem_of_tensor(role: str, info: TensorInfo) -> str | None:
    kind = str(info.dtype).removeprefix("torch.")
    form = form_of(role)
    assert form is not None
    if not form.axes:
        allowed = _NUMBERS | ({torch.bool} if form.is_flag else set())
        if info.numel != 1:
            return f"has shape {tuple(info.shape)}, where one number belongs"
        return None if info.dtype in allowed else f"is {kind}, where a number belongs"
    if info.dtype not in _FLOATS:
        return f"holds {kind} values; the weights of an adapter are floating-point numbers"
    if len(info.shape) not in form.axes:
        return f"has shape {tuple(info.shape)}, {' or '.join(map(str, form.axes))} axes were expected"
    return f"is empty, shape {tuple(info.shape)}" if info.numel == 0 else None


def _fits(roles: Mapping[str, TensorInfo], product: Product) -> bool:
    """Whether ``left @ right``, or with a core in the middle the product of the three, exists."""
    first, second, core = roles[product.left].shape, roles[product.right].shape, product.core
    # The kernel is in the right factor, or in the core where there is one.
    if any(size != 1 for size in (*first[2:], *(second[2:] if core in roles else ()))):
        return False
    if core not in roles:
        return first[1] == second[0]
    # LoCon stores up (out, r), mid (r, r, kh, kw), down (r, in); LoHa and LoKr the left factor the other way round.
    rank = first[1] if product.left_is_out_first else first[0]
    middle = roles[core].shape
    return middle[:2] == (rank, second[0]) and (not product.left_is_out_first or middle[0] == middle[1])


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
    "without loss"
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
    found = {key: kind for key in keys for suffix, kind in FOREIGN_SUFFIXES.items() if key.endswith(suffix)}
    return {key: kind for key, kind in found.items() if dialect_of(key) is None}  # some package may read it
