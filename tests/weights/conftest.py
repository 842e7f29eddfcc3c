"""Toy checkpoints in several types and forms, and files of LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.adapters.attach import AdapterSet
from loraloom.formats.tensors import write_tensors
from toys import toy_tensors

MODEL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The path of a family's toy, by the type of its weights and the suffix; written once. Tables stay float32."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def write(family: str, dtype: torch.dtype = torch.float32, suffix: str = ".safetensors") -> Path:
        path = folder / f"{family}-{str(dtype).removeprefix('torch.')}{suffix}"
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() and name.startswith(MODEL) else tensor
            for name, tensor in toy_tensors(family).items()
        }
        extras = {"epoch": 3, "global_step": 1000}
        write_tensors(path, tensors, metadata={"modelspec.title": "Toy", "modelspec.hash_sha256": "0x1"}, extras=extras)
        return path

    return write


@pytest.fixture
def write_lora(tmp_path: Path) -> Callable[..., Path]:
    """Writes a LoRA's tensors and gives the path."""

    def write(name: str, tensors: AdapterSet | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
        path = tmp_path / name
        write_tensors(path, tensors.file_tensors() if isinstance(tensors, AdapterSet) else tensors, metadata=metadata)
        return path

    return write
