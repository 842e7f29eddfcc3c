"""Factorizations against the dense SVD, and kohya's ways to choose a rank against their definitions."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import SettingsError
from loraloom.weights.low_rank import Criterion, chosen_rank, factors_of_matrix, factors_of_product


def decaying(rows: int, columns: int, power: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64))[0]
    return (left * torch.arange(1, size + 1, dtype=torch.float64) ** -power @ right.T).float()


@pytest.mark.parametrize(("rows", "columns", "rank"), [(40, 30, 5), (6, 50, 12), (50, 6, 12)])
def test_a_product_is_decomposed_as_the_dense_matrix_is(rows: int, columns: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    factors = factors_of_product(up, down)
    dense = torch.linalg.svdvals(up.double() @ down.double())[: len(factors.values)]
    torch.testing.assert_close(factors.values.double(), dense, rtol=1e-5, atol=1e-5)
    for kept in (1, 3):
        d, u = factors.pair(kept)
        wanted, values, right = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
        best = wanted[:, :kept] * values[:kept] @ right[:kept]
        torch.testing.assert_close((u @ d).double(), best, rtol=1e-4, atol=1e-4)
        error = float(torch.linalg.vector_norm(up @ down - u @ d) / torch.linalg.vector_norm(up @ down))
        assert factors.residual(kept) == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_random_projection_is_as_good_as_the_full_svd(power: float) -> None:
    matrix = decaying(300, 200, power)
    values = torch.linalg.svdvals(matrix.double())
    factors = factors_of_matrix(matrix, 16)
    best = float((values[16:] ** 2).sum().sqrt() / (values**2).sum().sqrt())
    down, up = factors.pair(16)
    error = float(torch.linalg.vector_norm(matrix - up @ down) / torch.linalg.vector_norm(matrix))
    assert best * (1 - 1e-5) <= error <= best * 1.005
    assert factors.residual(16) == pytest.approx(error, abs=2e-5)


def test_ranks_are_chosen_by_kohyas_definitions() -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])
    assert chosen_rank(values, 9, Criterion("sv_ratio", 3)) == 2  # those above 8/3
    assert chosen_rank(values, 9, Criterion("sv_ratio", 8)) == 3  # 1 is not above 1
    assert chosen_rank(values, 9, Criterion("sv_cumulative", 0.8)) == 3  # 8, 12, 14 of 16
    assert chosen_rank(values, 9, Criterion("sv_fro", 0.95)) == 2  # 64, 80 of 86 against 0.9025
    assert chosen_rank(values, 2, Criterion("sv_ratio", 100)) == 2
    assert chosen_rank(values, 9) == 5
    assert chosen_rank(torch.zeros(3), 3, Criterion("sv_fro", 0.9)) == 1


@pytest.mark.parametrize(("name", "value"), [("sv_ratio", 0.5), ("sv_fro", 1.5), ("sv_fro", float("nan")), ("x", 1)])
def test_numbers_without_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError):
        Criterion(name, value)
