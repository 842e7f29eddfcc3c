"""Embeddings that a prompt names: found, put in the place of the name, refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.errors import FileFormatError
from loraloom.events import Event, Notice
from loraloom.formats.image_info import parse_parameters
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.generation.embeddings import embedding_files, load_embeddings
from loraloom.generation.guidance import encoder_widths
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.conditioning import TextEmbedding
from loraloom.models.loaded import LoadedModel

Models = Callable[[str], LoadedModel]
BASE = {"width": 64, "height": 48, "steps": 2, "seed": 7, "lora_folders": [], "cfg_scale": 1}


def load(model: LoadedModel, folder: Path, *texts: str, listener=lambda event: None) -> tuple[TextEmbedding, ...]:
    return load_embeddings(texts, [folder], model.tokenizer, encoder_widths(model), listener)[0]


def write(model: LoadedModel, path: Path, count: int = 2) -> None:
    generator = torch.Generator().manual_seed(3)
    widths = list(encoder_widths(model).values())
    names = ["emb_params"] if len(widths) == 1 else ["clip_l", "clip_g"]
    tensors = {name: torch.randn(count, width, generator=generator) for name, width in zip(names, widths, strict=True)}
    write_tensors(path, tensors)


def test_files_are_known_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.pt", "a.safetensors", "sub/b.ti.pt", "c.txt"):
        (tmp_path / name).touch()
    found = embedding_files([tmp_path, tmp_path / "none"])
    assert {name: path.name for name, path in found.items()} == {"a": "a.safetensors", "b": "b.ti.pt"}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@torch.no_grad()
def test_the_words_of_an_embedding_say_the_words(toy_model: Models, tmp_path: Path, family: str) -> None:
    """Vectors copied from the token table for "red cat" give the encoding of "red cat"."""
    model = toy_model(family)
    ids = torch.tensor([model.tokenizer.encode("red cat")])
    table = {}
    for part in model.family.text_parts:
        encoder = model.text_encoders[part.part]
        weights = encoder.get_parameter(
            "embeddings.token_embedding.weight" if part.encoder == "clip" else "token_embedding.weight"
        )
        table[part] = weights[ids[0]].detach().clone().float()
    names = ["emb_params"] if len(table) == 1 else ["clip_l", "clip_g"]
    write_tensors(tmp_path / "my-style.safetensors", dict(zip(names, table.values(), strict=True)))
    embeddings = load(model, tmp_path, "a MY-style!")
    found = model.encode_text(["a MY-style!"], embeddings=embeddings)
    expected = model.encode_text(["a red cat!"])
    torch.testing.assert_close(found.context, expected.context, atol=1e-5, rtol=1e-5)
    if expected.pooled is not None:
        torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.encode_text(["a MY-style!"]).context, expected.context, atol=1e-2)


def test_only_files_that_are_named_are_opened(toy_model: Models, tmp_path: Path) -> None:
    model = toy_model("sd1")
    (tmp_path / "cat.pt").write_bytes(b"\x80\x02damaged")
    assert load(model, tmp_path, "a category, a dog") == ()
    with pytest.raises(FileFormatError, match=r"cat\.pt"):
        load(model, tmp_path, "a dog", "a cat")


def test_one_for_another_family_stays_text_and_is_told(toy_model: Models, tmp_path: Path) -> None:
    write(toy_model("sdxl"), tmp_path / "style.safetensors")
    write_tensors(tmp_path / "odd.pt", {"string_to_param.*": torch.zeros(1, 5)})
    for family in ("sd1", "sdxl"):
        events: list[Event] = []
        found = load(toy_model(family), tmp_path, "a style, odd", listener=events.append)
        assert [embedding.name for embedding in found] == (["style"] if family == "sdxl" else [])
        texts = [event.text for event in events if isinstance(event, Notice)]
        assert len(texts) == 2 - len(found)
        assert all("is read as text" in text and "wide" in text for text in texts)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_image_with_an_embedding(toy_model: Models, tmp_path: Path, family: str) -> None:
    model = toy_model(family)
    settings = {**BASE, "prompt": "a (style:1.2)", "embedding_folders": [tmp_path]}
    (plain,) = text_to_image(model, GenerateSettings.parse(settings))
    write(model, tmp_path / "style.safetensors")
    (changed,) = text_to_image(model, GenerateSettings.parse(settings))
    assert not torch.allclose(plain.latent, changed.latent, atol=1e-3)
    assert parse_parameters(changed.infotext).fields["TI hashes"].startswith("style: ")


def test_a_word_that_a_lora_brings(toy_model: Models, tmp_path: Path) -> None:
    """As if its vectors lay in a file of that name; without the LoRA in the prompt it is text."""
    model = toy_model("sd1")
    write(model, tmp_path / "s1.safetensors")
    vectors = open_tensors(tmp_path / "s1.safetensors")["emb_params"].clone()
    target = model.targets[0]
    lora = {"lora_down": torch.zeros(1, target.shape[1]), "lora_up": torch.zeros(target.shape[0], 1)}
    keys = {f"{target.name}.{role}.weight": tensor for role, tensor in lora.items()}
    (tmp_path / "loras").mkdir()
    write_tensors(tmp_path / "loras" / "x.safetensors", {**keys, "bundle_emb.s1.string_to_param.*": vectors})

    def image(prompt: str, **folders: list[Path]) -> bytes:
        settings = GenerateSettings(**{**BASE, "embedding_folders": [], **folders}, prompt=prompt)
        return text_to_image(model, settings)[0].latent.numpy().tobytes()

    there = image("a s1 cat", embedding_folders=[tmp_path])
    assert image("a s1 cat <lora:x:1>", lora_folders=[tmp_path / "loras"]) == there
    assert image("a s1 cat", lora_folders=[tmp_path / "loras"]) != there
