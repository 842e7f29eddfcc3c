"""Damaged LoRA files of every kind and dialect: each door refuses them in a sentence or does its work."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter_corpus import drafts
from adapter_doors import LIGHT_DOORS, Bench, Fault, examine, remembered_names
from adapter_mutations import Seeds, mutate

SEED, FILES = "suite", 30


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with remembered_names():
        yield Bench(tmp_path)


def told(name: object, faults: list[Fault]) -> list[str]:
    return [f"{name}: {fault.door} | {fault.where} | {fault.what}" for fault in faults]


def test_sound_files_of_every_kind_and_dialect_are_read_alike_at_every_door(bench: Bench) -> None:
    faults, unread = [], []
    for name, draft in drafts().items():
        outcomes: Counter[str] = Counter()
        faults += told(name, examine(draft, bench, outcomes, LIGHT_DOORS))
        unread += [name] * (not outcomes["read: done"])
        is_too_wide = "real widths" in name
        unread += [f"{name} (generate)"] * (not is_too_wide and not outcomes["generate: done"])
    assert faults == []
    assert unread == []


def test_mutated_files_end_in_a_sentence_or_in_success(bench: Bench) -> None:
    """A short campaign; ``python tests/weights/fuzz_adapters.py`` is the long one."""
    outcomes: Counter[str] = Counter()
    seeds, faults = Seeds(), []
    for index in range(FILES):
        draft = mutate(random.Random(f"{SEED}-{index}"), seeds)
        faults += told(index, examine(draft, bench, outcomes))
    assert faults == []
    # The files are neither all whole nor all broken, or nothing was tried.
    assert outcomes["read: done"] > FILES / 5
    assert outcomes["read: refused"] > FILES / 5
