"""What an adapter kind, a sampler or a family is stands in its own entry: nothing else knows one by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import loraloom
from loraloom.diffusion.samplers import SAMPLERS
from loraloom.formats.adapter_kinds import ADAPTERS
from loraloom.models.family import FAMILIES

ROOT = Path(loraloom.__file__).parent
RECIPES = "recipes/"
"""Tables of other programs' names, wherever the wing stands."""
ROOMS = {
    "adapter kind": (set(ADAPTERS), ("adapters/", "formats/adapter_kinds.py", RECIPES)),
    "sampler": (set(SAMPLERS), ("diffusion/samplers.py", RECIPES)),
    # The names of layers that only one family has; blocks as sd-scripts numbers them.
    "family": (set(FAMILIES), ("models/", "formats/lora_family.py", "adapters/blocks.py", RECIPES)),
}
OTHER_MEANINGS = {"lora", "full", "norm"}
"""Names of kinds that are common words too: there only comparisons with a kind count."""
DEFAULTS = {
    ("generation/settings.py", "Euler a"),
    ("generation/settings.py", "Euler"),  # any name: a schedule is checked with it
    ("generation/recall.py", "Euler"),  # likewise
}


def named(source: str, names: set[str]) -> Iterator[str]:
    """The names that stand in a module as texts, or are compared with a kind."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names - OTHER_MEANINGS:
            yield str(node.value)
        if isinstance(node, ast.Compare) and any(
            word in ast.unparse(node.left) for word in ("kind_of(", "adapter.kind")
        ):
            texts = (part for side in node.comparators for part in ast.walk(side) if isinstance(part, ast.Constant))
            yield from (str(text.value) for text in texts if text.value in names & OTHER_MEANINGS)


def test_what_is_looked_for() -> None:
    names = {"lora", "dora"}
    assert list(named('KINDS = ("lora", "dora")', names)) == ["dora"]
    assert list(named('if kind_of(roles) != "lora": pass', names)) == ["lora"]
    assert list(named('if adapter.kind in ("full", "lora"): pass', names)) == ["lora"]
    assert list(named('"""dora is a kind."""', names)) == []


@pytest.mark.parametrize("what", ROOMS)
def test_nothing_outside_of_its_room_knows_one_by_name(what: str) -> None:
    names, rooms = ROOMS[what]
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if not any(place.startswith(room) or f"/{room}" in place for room in rooms):
            said = named(path.read_text(encoding="utf-8"), names)
            found += [(place, name) for name in said if (place, name) not in DEFAULTS]
    assert found == []


def test_a_kind_is_named_in_its_own_module_alone() -> None:
    """And by the kind that is a variant of it or wraps it."""
    known = {"lora_fa": {"lora"}, "dora": {"lora", "loha", "lokr"}}
    for name, entry in ADAPTERS.items():
        module = Path(*entry.target.partition(":")[0].split(".")[1:]).with_suffix(".py")
        others = set(ADAPTERS) - {name} - known.get(name, set()) - OTHER_MEANINGS
        assert set(named((ROOT / module).read_text(encoding="utf-8"), others)) == set()
    for other in ("settings", "attach", "active", "metadata", "readers", "kinds", "adapter"):
        text = (ROOT / "adapters" / f"{other}.py").read_text(encoding="utf-8")
        default = {"lora"} if other == "settings" else set()
        assert set(named(text, set(ADAPTERS))) <= default
