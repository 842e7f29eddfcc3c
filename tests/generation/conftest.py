"""Toy checkpoints on disk, and toy LoRAs for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.adapters.attach import create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.tensors import write_tensors
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model

CPU = torch.device("cpu")
SIZES = {
    "sd1": {"channels": 32, "text_width": 32, "text_layers": 2, "vae_channels": 32},
    "sd2": {},
    "sdxl": {},
}


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a toy checkpoint of a family, written once."""
    folder = tmp_path_factory.mktemp("toys")

    def path_of(family: str) -> Path:
        path = folder / f"toy-{family}.safetensors"
        if not path.exists():
            write_tensors(path, FAMILIES.load(family)().toy(seed=1, **SIZES[family]))
        return path

    return path_of


@pytest.fixture(scope="session")
def toy_model(toy_path: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    """A loaded toy of a family, loaded once; tests leave it as it was."""
    models: dict[str, LoadedModel] = {}

    def model_of(family: str) -> LoadedModel:
        if family not in models:
            models[family] = load_model(toy_path(family), device=CPU, prediction="v" if family == "sd2" else "epsilon")
        return models[family]

    return model_of


@pytest.fixture
def write_lora() -> Callable[[LoadedModel, Path, int], None]:
    """Writes a random rank-4 LoRA for a model."""

    def write(model: LoadedModel, path: Path, seed: int = 0) -> None:
        adapters = create_adapters(AdapterSettings(rank=4), model.targets, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for _, adapter in adapters.items():
            adapter.up.data = torch.randn(adapter.up.shape, generator=generator) * 0.05  # type: ignore[union-attr]
        write_tensors(path, adapters.file_tensors())

    return write
