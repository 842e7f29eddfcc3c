"""Counter-based randomness: every draw is a pure function of its key, never of a generator's history.

That is what makes a resumed run identical, two runs comparable draw by draw, and the order of work irrelevant.
A key is any sequence of text and whole numbers: ``(run seed, "noise", step, sample identity)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["generator", "normal", "seed_of", "shuffled", "uniform"]

Key = int | str
T = TypeVar("T")


def seed_of(*key: Key) -> int:
    """A 63-bit seed that depends on every element of ``key`` and on nothing else."""
    digest = blake2b(digest_size=8)
    for element in key:
        text = f"{type(element).__name__}:{element}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def uniform(*key: Key) -> float:
    """A number in [0, 1)."""
    return (seed_of(*key) >> 10) / (1 << 53)


def shuffled(items: Sequence[T], *key: Key) -> list[T]:
    """The items in a random order (Fisher-Yates)."""
    result = list(items)
    for index in range(len(result) - 1, 0, -1):
        other = seed_of(*key, "swap", index) % (index + 1)
        result[index], result[other] = result[other], result[index]
    return result


def generator(*key: Key) -> torch.Generator:
    """A CPU generator seeded by the key (drawing on the CPU makes every device see the same numbers)."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(*key))


def normal(shape: Sequence[int], *key: Key) -> torch.Tensor:
    """Standard normal float32 values of the given shape, on the CPU."""
    import torch

    return torch.randn(*shape, generator=generator(*key), dtype=torch.float32)
