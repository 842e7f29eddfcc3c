"""Toy checkpoints of every family, made once a process."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from loraloom.models.family import FAMILIES, Family

__all__ = ["toy_tensors"]


@cache
def toy_tensors(name: str) -> dict[str, Tensor]:
    """The toy of a family in fp32, so that comparisons with other programs are tight."""
    family: Family = FAMILIES.load(name)()
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in family.toy().items()}
