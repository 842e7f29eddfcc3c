"""How a kind of adapter lies in a file: which tensors make a layer of it, their shapes, and the ends of their keys.

Every kind carries one :class:`KeyLayout` (``Adapter.layout``). Everything here about files follows from those, so that
no other module knows a kind by its name. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "FACTOR",
    "FLAG",
    "KERNEL",
    "MATRIX",
    "NUMBER",
    "VECTOR",
    "WEIGHT",
    "Form",
    "KeyLayout",
    "Product",
]


@dataclass(frozen=True)
class Form:
    """What a tensor may look like: how many ``axes`` it may have. Without any it is one number, in any shape."""

    axes: tuple[int, ...] = ()
    is_flag: bool = False
    """Whether the number may be true or false."""


NUMBER = Form()
FLAG = Form(is_flag=True)
VECTOR = Form((1,))
MATRIX = Form((2,))
FACTOR = Form((2, 4))
"""A matrix, or a convolution in its place."""
KERNEL = Form((4,))
WEIGHT = Form((1, 2, 4))
"""As the weight of any layer."""


@dataclass(frozen=True)
class Product:
    """Two tensors that are multiplied, and the core of LyCORIS' Tucker form that may stand between them."""

    left: str
    right: str
    core: str = ""
    left_is_out_first: bool = False
    """With a core, whether left is (out, rank): LoCon stores it so, LoHa and LoKr the other way round."""


@dataclass(frozen=True)
class KeyLayout:
    """The tensors of one layer, by role (``down``, ``alpha``)."""

    title: str
    """What people call the kind."""
    own: Mapping[str, Form]
    """The roles that only this kind has."""
    more: Mapping[str, Form] = field(default_factory=dict)
    """Roles that may come with them."""
    needs: tuple[tuple[tuple[str, ...], ...], ...] = ()
    """Of each entry one alternative is needed, with all of its roles."""
    is_told_by_all: bool = False
    """Whether all of its own roles are needed to tell the kind: where one of them has a name that anything may have."""
    products: tuple[Product, ...] = ()
    ranks: tuple[str, ...] = ()
    """Roles whose first axis is the rank; of those in a file the first one counts."""
    columns: tuple[tuple[str, ...], ...] = ()
    """Roles whose second axes, the first one in a file of each entry, multiply to the channels that the layer reads."""
    keys: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By dialect, the ends of keys and their roles; the first of a role is written.

    In kohya's and ComfyUI's, unless they stand here, a dot and the role; in the others none.
    """
    peft_modules: tuple[str, ...] = ()
    """Ends of keys (without dots and ``weight``) that PEFT may write the name of an adapter behind."""
    peft_rows: str = ""
    """A role that PEFT keeps without its second axis."""
    peft_scaled: str = ""
    """The role that PEFT's scale belongs to where a layer has no rank."""
    wraps: frozenset[str] = frozenset()
    """Kinds whose tensors must come with this one's: it changes what another adapter does."""
    exact: frozenset[str] = frozenset()
    """Roles that are never rounded to the precision of the file."""
    is_pair: bool = False
    """Whether the change is the product of a down and an up matrix, which can be combined, resized and exported."""
    adds_up: bool = False
    """Whether the change is the tensors themselves, so that sums of changes are sums of tensors."""
    marks: tuple[str, ...] = ()
    """Pieces of keys by which the kind is recognised even where the rest of the name is strange."""

    def ends(self, dialect: str) -> Mapping[str, str]:
        """The ends of keys in this dialect, and their roles."""
        plain = {f".{role}": role for role in (*self.own, *self.more)} if dialect in _PLAIN else {}
        return self.keys.get(dialect, plain)

    def form(self, role: str) -> Form | None:
        """What the tensor of a role may look like; None for a role of other kinds."""
        return self.own.get(role) or self.more.get(role)

    def lacking(self, roles: Iterable[str]) -> str | None:
        """A tensor without which the others have no product; None where they are complete."""
        present = set(roles)

        # Nothing of what it needs is there: the first way of having it is the one to ask for.
        for alternatives in self.needs:
            if not present & {role for alternative in alternatives for role in alternative}:
                return alternatives[0][0]

        # One way was begun: what that way lacks says more than the name of another way.
        begun = (one for alternatives in self.needs for one in alternatives if present & set(one))
        return next((role for alternative in begun for role in alternative if role not in present), None)


_PLAIN = ("kohya", "comfy")
