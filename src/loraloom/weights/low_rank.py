"""Low-rank factorizations: of a product of thin matrices by QR, of a whole matrix by random projections."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.errors import AdapterError, SettingsError

__all__ = ["CRITERIA", "Criterion", "Factors", "Residual", "chosen_rank", "factors_of_matrix", "factors_of_product"]

CRITERIA = ("sv_ratio", "sv_cumulative", "sv_fro")
OVERSAMPLING = 10
POWER_ITERATIONS = 4


@dataclass(frozen=True)
class Factors:
    """``left @ diag(values) @ right``: (out, k), (k,) falling, (k, in); ``norm`` is the whole matrix's (Frobenius)."""

    left: Tensor
    values: Tensor
    right: Tensor
    norm: float

    def residual(self, rank: int) -> float:
        """Relative Frobenius norm of what the first ``rank`` leave out.

        True also for a random projection, since what is kept is an orthogonal projection of the matrix; of a matrix in
        float32 anything below about 0.0005 is rounding.
        """
        if not self.norm:
            return 0.0
        kept = float((self.values[:rank].double() ** 2).sum())
        return math.sqrt(max(self.norm**2 - kept, 0.0)) / self.norm

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """``(down, up)`` of the first ``rank``, the singular values shared evenly between them."""
        root = self.values[:rank].clamp(min=0).sqrt().float()
        return root[:, None] * self.right[:rank], self.left[:, :rank] * root


@dataclass(frozen=True)
class Residual:
    """What was cut away of several layers together."""

    whole: float
    """Squared Frobenius norm of all layers."""
    lost: float
    """Of what was cut away of them."""

    @classmethod
    def of(cls, layers: Iterable[tuple[float, float]]) -> Residual:
        """That of layers, each a Frobenius norm and the relative one of what was cut away."""
        whole = lost = 0.0
        for norm, residual in layers:
            whole += norm**2
            lost += (residual * norm) ** 2
        return cls(whole, lost)

    @property
    def relative(self) -> float:
        """Relative Frobenius norm of all that was cut away."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0


@dataclass(frozen=True)
class Criterion:
    """How a rank is chosen from singular values, in kohya's names and meaning.

    ``sv_ratio``: those larger than the largest divided by ``value``; ``sv_cumulative``: as many as add up to the share
    ``value`` of their sum; ``sv_fro``: as many as have the share ``value`` of the Frobenius norm.
    """

    name: str
    value: float

    def __post_init__(self) -> None:
        if self.name not in CRITERIA:
            raise SettingsError([f"{self.name!r} is not a way to choose a rank"], f"known: {', '.join(CRITERIA)}")
        if self.name == "sv_ratio" and not self.value >= 1:
            raise SettingsError([f"sv_ratio {self.value:g} is below 1"], "2 keeps values of at least half the largest")
        if self.name != "sv_ratio" and not 0 < self.value <= 1:
            raise SettingsError([f"{self.name} {self.value:g} is not between 0 and 1"], "0.9 keeps nine tenths")


def chosen_rank(values: Tensor, limit: int, criterion: Criterion | None = None) -> int:
    """The rank for falling singular values (n,), at least 1 and at most ``limit``."""
    wanted, values = len(values), values.double()
    if criterion is not None and float(values[0]) > 0:
        if criterion.name == "sv_ratio":
            wanted = int((values > values[0] / criterion.value).sum())
        else:
            shares = values if criterion.name == "sv_cumulative" else values**2
            goal = criterion.value if criterion.name == "sv_cumulative" else criterion.value**2
            sums = shares.cumsum(0) / shares.sum()
            wanted = int(torch.searchsorted(sums, torch.tensor(goal, dtype=sums.dtype))) + 1
    elif criterion is not None:
        wanted = 1
    return max(1, min(wanted, limit, len(values)))


def factors_of_product(up: Tensor, down: Tensor) -> Factors:
    """The SVD of ``up @ down``, (out, r) and (r, in): nothing larger than r x r is decomposed.

    Raises AdapterError for a product that goes beyond the range of float32.
    """
    left, upper = torch.linalg.qr(up.float())
    right, lower = torch.linalg.qr(down.float().T)
    core = upper.double() @ lower.double().T
    if not bool(torch.isfinite(core).all()):
        raise AdapterError("the change of a layer goes beyond the range of float32", "use smaller weights")
    u, values, v = torch.linalg.svd(core, full_matrices=False)
    norm = float(torch.linalg.vector_norm(values))
    return Factors(left @ u.float(), values, v.float() @ right.T, norm)


def factors_of_matrix(matrix: Tensor, rank: int, *, seed: int = 0) -> Factors:
    """The first ``rank`` singular values and vectors of a matrix (out, in), by random projection.

    Halko, Martinsson and Tropp, arXiv:0909.4061: a basis of the range from ``rank`` + 10 random vectors and four power
    iterations, each made orthogonal by QR. A matrix hardly larger than that is decomposed as it is.
    """
    matrix = matrix.float()
    norm = float(torch.linalg.vector_norm(matrix.double()))
    columns = rank + OVERSAMPLING
    if columns * 2 >= min(matrix.shape):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        return Factors(u[:, :rank], values[:rank], v[:rank], norm)
    random = torch.randn(matrix.shape[1], columns, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(matrix @ random.to(matrix.device))[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    right, lower = torch.linalg.qr(matrix.T @ basis)
    u, values, v = torch.linalg.svd(lower.T, full_matrices=False)
    return Factors(basis @ u[:, :rank], values[:rank], v[:rank] @ right.T, norm)
