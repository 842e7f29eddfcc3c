"""Where the factors of a LoRA start: other choices than the usual random ``down`` and zero ``up``."""

from __future__ import annotations

import torch
from torch import Tensor

from loraloom.randomness import generator

__all__ = ["orthogonal_rows", "principal_factors"]

_OVERSAMPLING = 16
_ITERATIONS = 8


def orthogonal_rows(rank: int, columns: int, seed: int, name: str) -> Tensor:
    """(rank, columns) with orthogonal rows (columns where there are more rows than columns).

    The rows have the length that the usual uniform ones have on average, so learning rates carry over.
    """
    random = torch.randn(max(rank, columns), min(rank, columns), generator=generator(seed, "init", name))
    q, r = torch.linalg.qr(random)
    q = q * r.diagonal().sign()  # makes the choice of signs ours, not the library's
    rows: Tensor = (q if rank > columns else q.T).contiguous() / 3**0.5
    return rows


def principal_factors(weight: Tensor, rank: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """``(down, up)`` with ``up @ down`` the best approximation of that rank, the singular values shared evenly.

    PiSSA (Meng et al., arXiv:2404.02948). ``weight`` is (out, in). Large matrices are reduced first with a random
    subspace (Halko et al., arXiv:0909.4061), which takes a fraction of the time of all singular values.
    """
    weight = weight.float()
    reduced = rank + _OVERSAMPLING
    if reduced * 3 < min(weight.shape):
        q = torch.randn(weight.shape[1], reduced, generator=generator(seed, "pissa", name)).to(weight.device)
        for _ in range(_ITERATIONS):
            q, _ = torch.linalg.qr(weight @ q)
            q, _ = torch.linalg.qr(weight.T @ q)
        u, values, v = torch.linalg.svd(weight @ q, full_matrices=False)
        v = v @ q.T
    else:
        u, values, v = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * v[:rank]).contiguous(), (u[:, :rank] * root).contiguous()
