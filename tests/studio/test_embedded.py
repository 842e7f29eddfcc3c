from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import FileFormatError
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.loaded import load_model
from loraloom.models.sd1 import SD1
from loraloom.models.tokenizer import clip_tokenizer
from loraloom.studio.embedded import IDS, ROWS, token_vectors, write_checkpoint

TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
WORDS = "an apple on a blue background"


@pytest.fixture(scope="module")
def toy() -> dict[str, Tensor]:
    """A complete checkpoint with the untrained vectors everywhere but at the words of one caption."""
    tensors = {name: value.half() for name, value in SD1().toy(seed=3).items() if value.is_floating_point()}
    ids = torch.tensor(clip_tokenizer().encode(WORDS))
    trained = tensors[TABLE][ids].clone()
    tensors[TABLE] = token_vectors(trained.shape[1]).half()
    tensors[TABLE][ids] = trained
    return tensors


@pytest.fixture(scope="module")
def packaged(toy: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = torch.tensor(sorted(set(clip_tokenizer().encode(WORDS))))
    parts = {name: value for name, value in toy.items() if name.startswith(("model.", "first_stage", "cond_stage"))}
    rows = parts.pop(TABLE)[ids]
    path = tmp_path_factory.mktemp("packaged") / "base.safetensors"
    write_tensors(path, parts | {ROWS: rows, IDS: ids.int()}, metadata={"modelspec.title": "a toy"})
    return path


def test_written_file_is_the_whole_checkpoint(packaged: Path, toy: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "full.safetensors"
    write_checkpoint(packaged, target)
    assert packaged.stat().st_size < target.stat().st_size
    with open_tensors(target) as full:
        assert set(full) == set(SD1().toy())
        assert full.metadata["modelspec.title"] == "a toy"
        assert all(torch.equal(full[name], toy[name]) for name in toy if name.startswith(("model.", "first", "cond")))
        alphas = full["alphas_cumprod"]
        assert alphas.dtype == torch.float32
        assert float(alphas[0]) == pytest.approx(1 - 0.00085, abs=1e-6)


def test_written_file_loads_and_encodes_text(packaged: Path, tmp_path: Path) -> None:
    target = tmp_path / "full.safetensors"
    write_checkpoint(packaged, target)
    model = load_model(target, device=torch.device("cpu"))
    context = model.encode_text([WORDS, "unheard zyzzyva"]).context
    assert model.family.name == "sd1"
    assert context.shape[:2] == (2, 77)
    assert torch.isfinite(context).all()
    assert not torch.equal(context[0], context[1])


def test_untrained_vectors_are_small_and_differ() -> None:
    vectors = token_vectors(16)
    assert torch.equal(vectors, token_vectors(16))
    assert float(vectors.std()) == pytest.approx(0.5, rel=0.01)
    assert not torch.equal(vectors[0], vectors[1])


def test_other_file_is_refused(toy: dict[str, Tensor], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tensors(other, {TABLE: toy[TABLE][:3].contiguous()})
    with pytest.raises(FileFormatError, match="not a packaged checkpoint"):
        write_checkpoint(other, tmp_path / "full.safetensors")
    assert not (tmp_path / "full.safetensors").exists()


@pytest.mark.parametrize("ids", [[1, 2], [0, 1, 49408], [-1, 0, 1]])
def test_ids_that_do_not_fit_are_refused(ids: list[int], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    write_tensors(damaged, {ROWS: torch.zeros(3, 8), IDS: torch.tensor(ids, dtype=torch.int32)})
    with pytest.raises(FileFormatError, match="do not fit"):
        write_checkpoint(damaged, tmp_path / "full.safetensors")
