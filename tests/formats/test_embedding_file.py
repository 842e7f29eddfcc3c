"""Embeddings in every layout that people have, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from loraloom.errors import FileFormatError, UnsafeFileError
from loraloom.formats.embedding_file import read_embedding

VECTORS = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "x", "sd_checkpoint": None},
        {"<s1>": VECTORS[0], "<s2>": VECTORS[1], "<s3>": VECTORS[2]},
        {"<style>": VECTORS},
        {"emb_params": VECTORS},
    ],
)  # fmt: skip
def test_pickled_layouts(tmp_path: Path, content: dict[str, object], old: bool) -> None:
    path = tmp_path / "style.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    found = read_embedding(path)
    assert list(found.vectors) == ["any"]
    assert torch.equal(found.vectors["any"], VECTORS)


def test_a_module_of_torch_around_the_vectors(tmp_path: Path) -> None:
    """As the program of the textual-inversion paper saves them."""
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS.clone())})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": parameters}, tmp_path / "style.pt")
    assert torch.equal(read_embedding(tmp_path / "style.pt").vectors["any"], VECTORS)


@pytest.mark.parametrize(
    ("tensors", "widths"),
    [
        ({"emb_params": VECTORS.half()}, {"any": (3, 4)}),
        ({"clip_l": VECTORS, "clip_g": torch.zeros(3, 8)}, {"clip_l": (3, 4), "clip_g": (3, 8)}),
        ({"<cat>": VECTORS[0].contiguous()}, {"any": (1, 4)}),
    ],
)
def test_safetensors_layouts(tmp_path: Path, tensors: dict[str, torch.Tensor], widths: dict[str, object]) -> None:
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(tensors, path)
    found = read_embedding(path)
    assert {encoder: tuple(vectors.shape) for encoder, vectors in found.vectors.items()} == widths
    assert all(vectors.dtype == torch.float32 for vectors in found.vectors.values())


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": torch.zeros(2, 2, 2)},
        {"emb_params": torch.zeros(0, 4)},
        {"emb_params": torch.zeros(76, 4)},
        {"emb_params": torch.full((1, 4), float("nan"))},
        {"emb_params": torch.zeros(1, 4, dtype=torch.int32)},
        {"<a>": torch.zeros(4), "<b>": torch.zeros(5)},
        {"clip_l": torch.zeros(1, 4), "clip_g": torch.zeros(2, 8)},
    ],
)
def test_files_that_are_no_embedding_are_told(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(FileFormatError, match=r"style\.safetensors"):
        read_embedding(path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"string_to_param": {"*": VECTORS}}, whole)
    for length in (0, 10, 200, whole.stat().st_size - 30):
        (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(FileFormatError, match=r"cut\.pt"):
            read_embedding(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS, "+": {1, 2}}},
        {"<s1>": VECTORS[0], "<s2>": torch.float16},
        [VECTORS[0], None],
    ],
)
def test_vectors_that_cannot_be_understood_are_not_left_out(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "style.pt")
    with pytest.raises(UnsafeFileError, match="cannot be understood as weights") as caught:
        read_embedding(tmp_path / "style.pt")
    assert "safetensors" in caught.value.hint
