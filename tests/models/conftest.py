"""Toys of every family, written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from loraloom.formats.tensors import write_tensors
from loraloom.models.family import FAMILIES, Family
from loraloom.models.loaded import LoadedModel, load_model
from toys import toy_tensors


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = FAMILIES.load(request.param)()
    return found


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a family's toy as .safetensors."""
    folder = tmp_path_factory.mktemp("toys")

    @cache
    def write(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        write_tensors(path, toy_tensors(name))
        return path

    return write


@pytest.fixture
def model(family: Family, toy_file: Callable[[str], Path]) -> LoadedModel:
    """The toy of each family, loaded."""
    return load_model(toy_file(family.name), device=torch.device("cpu"))
