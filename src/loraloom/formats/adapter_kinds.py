"""The kinds of adapters: one line for each, whose class says everything else, and what their layouts say together.

A package adds a kind of its own with an entry point of the group ``loraloom.adapter_kind``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from loraloom.formats.key_layout import Form, KeyLayout
from loraloom.registry import Entry, Registry

__all__ = [
    "ADAPTERS",
    "KindEntry",
    "Shaped",
    "Traits",
    "form_of",
    "inner_roles",
    "is_pair",
    "kind_of",
    "layout_of",
    "layouts",
    "rank_of",
    "title_of",
    "trained_kinds",
    "traits_of",
]


class Shaped(Protocol):
    """A tensor, or what a file says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Traits:
    """What has to be known of a kind to check settings."""

    has_rank: bool = True
    """Whether its size follows from a rank; without, rank and alpha have no effect."""
    is_low_rank: bool = False
    """Whether a down and an up matrix are trained, for which there are several starts, and dropout between them."""
    own_settings: tuple[str, ...] = ()
    """The fields of ``AdapterSettings`` that no other kind reads."""


@dataclass(frozen=True)
class KindEntry(Entry):
    """A kind of adapter: its class, a subclass of ``loraloom.adapters.adapter.Adapter``."""

    is_trained: bool = True
    """Whether it can be trained, not only read."""
    traits: Traits | None = None
    """So that settings are checked without importing the class. None: a kind of another package, whose class has
    them."""


_LOW_RANK = Traits(is_low_rank=True)
_NO_RANK = Traits(has_rank=False)


ADAPTERS = Registry(
    "adapter kind",
    {
        "lora": KindEntry(
            "loraloom.adapters.lora:LoraAdapter", "LoRA, also for convolutions (LoCon)", traits=_LOW_RANK
        ),
        "lora_fa": KindEntry(
            "loraloom.adapters.lora_fa:LoraFaAdapter", "LoRA with a frozen down matrix", traits=_LOW_RANK
        ),
        "dora": KindEntry(
            "loraloom.adapters.dora:DoraAdapter",
            "LoRA with trained magnitudes of the weight",
            traits=Traits(is_low_rank=True, own_settings=("dora_axis",)),
        ),
        "loha": KindEntry(
            "loraloom.adapters.loha:LohaAdapter", "elementwise product of two low-rank matrices", traits=Traits()
        ),
        "lokr": KindEntry(
            "loraloom.adapters.lokr:LokrAdapter",
            "Kronecker product",
            traits=Traits(own_settings=("lokr_factor", "lokr_decompose_both", "lokr_full_matrix")),
        ),
        "ia3": KindEntry("loraloom.adapters.ia3:Ia3Adapter", "one factor for each channel", traits=_NO_RANK),
        "full": KindEntry("loraloom.adapters.full:FullAdapter", "the whole difference of the weight", traits=_NO_RANK),
        "norm": KindEntry(
            "loraloom.adapters.norm:NormAdapter",
            "difference of a normalization; read, not trained",
            is_trained=False,
            traits=_NO_RANK,
        ),
    },
    plugins=KindEntry,
)


def trained_kinds() -> list[str]:
    """The names that ``adapter.kind`` may have; imports no kind."""
    return [name for name, entry in ADAPTERS.items() if not isinstance(entry, KindEntry) or entry.is_trained]


def traits_of(name: str) -> Traits:
    """What has to be known of a kind; imports one of another package. Raises UnknownNameError, PluginError."""
    entry = ADAPTERS[name]
    if isinstance(entry, KindEntry) and entry.traits is not None:
        return entry.traits
    traits: Traits = ADAPTERS.load(name).traits
    return traits


@cache
def layouts() -> Mapping[str, KeyLayout]:
    """How each kind lies in a file, by the name of the kind that a file holds, those that wrap others first.

    Imports all kinds. Raises PluginError for one of another package that cannot be imported.
    """
    kinds = {name: ADAPTERS.load(name) for name in ADAPTERS}
    stored = {name: kind.layout for name, kind in kinds.items() if kind.stored_as() == name}
    return dict(sorted(stored.items(), key=lambda item: not item[1].wraps))


def kind_of(roles: Iterable[str]) -> str | None:
    """The kind of adapter that one layer's tensors make, told by their roles; None when they make none, or two."""
    roles = set(roles)
    for kind, layout in layouts().items():
        own = layout.own.keys()
        if not roles & own:
            continue

        if layout.wraps:
            return kind if kind_of(roles - own) in layout.wraps else None
        is_told = own <= roles or not layout.is_told_by_all
        return kind if is_told and roles <= own | layout.more.keys() else None
    return None


def layout_of(roles: Iterable[str]) -> KeyLayout | None:
    """How the kind that one layer's tensors make lies in a file; None when they make none."""
    kind = kind_of(roles)
    return None if kind is None else layouts()[kind]


def inner_roles(roles: Iterable[str]) -> set[str]:
    """The roles of the adapter inside, where a kind that wraps others is around it; else the roles."""
    wrapping = {role for layout in layouts().values() if layout.wraps for role in layout.own}
    return set(roles) - wrapping


def is_pair(roles: Iterable[str]) -> bool:
    """Whether these tensors alone are a down and an up matrix."""
    layout = layout_of(roles)
    return layout is not None and layout.is_pair


def form_of(role: str) -> Form | None:
    """What the tensor of a role may look like; None for a role of no kind."""
    return next((form for layout in layouts().values() if (form := layout.form(role)) is not None), None)


def rank_of(roles: Mapping[str, Shaped]) -> int | None:
    """The rank of a layer's factors; None for a kind, or a layer of one, without."""
    ranked = (role for layout in layouts().values() for role in layout.ranks)
    return next((roles[role].shape[0] for role in ranked if role in roles and roles[role].shape), None)


def title_of(roles: Iterable[str]) -> str:
    """What people call the kind of a layer: ``LoKr with DoRA``."""
    roles = set(roles)
    kind = kind_of(roles)
    if kind is None:
        return "unknown"
    inner = layout_of(inner_roles(roles))
    title = layouts()[kind].title
    return title if inner is None or inner.is_pair or not layouts()[kind].wraps else f"{inner.title} with {title}"
