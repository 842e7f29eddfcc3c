"""Diffusers folders: what we write loads in diffusers and computes the same; what others write loads here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from loraloom.errors import CheckpointError, FileFormatError, MissingFileError
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import FAMILIES, Family
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.saving import save_checkpoint
from toys import toy_tensors

CPU = torch.device("cpu")
ToyFile = Callable[[str], Path]
PROMPT = "a photo of a cat, on a hill"  # no "!", which diffusers' tokenizer of SD 2 takes for padding


@dataclass
class Both:
    """The same toy here and in diffusers, through the folder we wrote."""

    folder: Path
    model: LoadedModel
    pipeline: Any


@pytest.fixture(scope="module")
def both_of(tmp_path_factory: pytest.TempPathFactory, toy_file: ToyFile) -> Callable[[str], Both]:
    made: dict[str, Both] = {}

    def make(name: str) -> Both:
        if name not in made:
            folder = tmp_path_factory.mktemp("folders") / name
            model = load_model(toy_file(name), device=CPU)
            save_checkpoint(model, folder)
            made[name] = Both(folder, model, DiffusionPipeline.from_pretrained(folder, local_files_only=True))
        return made[name]

    return make


@pytest.fixture
def both(both_of: Callable[[str], Both], family: Family) -> Both:
    return both_of(family.name)


def reference_text(both: Both, text: str, clip_skip: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """By diffusers' own encode_prompt; for SD's clip skip by its rule, which it cannot apply with transformers 5."""
    pipeline = both.pipeline
    if both.model.family.uses_sizes:
        skipped = None if clip_skip == 1 else clip_skip - 1
        context, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, clip_skip=skipped)
        return context, pooled
    if clip_skip == 1:
        return pipeline.encode_prompt(text, "cpu", 1, False)[0], None
    ids = pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
    return getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder).final_layer_norm(hidden), None


@torch.no_grad()
def test_text_agrees_with_diffusers_at_every_clip_skip(both: Both) -> None:
    for text in (PROMPT, "", "cat " * 75):
        for clip_skip in range(1, both.model.max_clip_skip() + 1):
            expected, pooled = reference_text(both, text, clip_skip)
            got = both.model.encode_text([text], clip_skip=clip_skip)
            torch.testing.assert_close(got.context, expected, rtol=1e-4, atol=1e-4)
            if pooled is not None:
                torch.testing.assert_close(got.pooled, pooled, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_denoising_agrees_with_diffusers(both: Both) -> None:
    conditioning = both.model.encode_text([PROMPT, "a dog"])
    noisy, timesteps = torch.randn(2, 4, 16, 24), torch.tensor([7, 801])
    sizes = torch.tensor([[128.0, 192, 8, 0, 128, 192], [256, 256, 0, 64, 128, 192]])
    added = {"text_embeds": conditioning.pooled, "time_ids": sizes} if conditioning.pooled is not None else None
    expected = both.pipeline.unet(noisy, timesteps, conditioning.context, added_cond_kwargs=added).sample
    got = both.model.denoise(noisy, timesteps, conditioning.with_sizes(sizes))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_agree_with_diffusers(both: Both) -> None:
    scale = both.model.family.latent_scale
    pixels = torch.rand(1, 3, 64, 96) * 2 - 1
    distribution = both.pipeline.vae.encode(pixels).latent_dist
    mean, std = both.model.encode_images(pixels)
    torch.testing.assert_close(mean, distribution.mean * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, distribution.std * scale, rtol=1e-4, atol=1e-5)
    expected = both.pipeline.vae.decode(mean / scale).sample.clamp(-1, 1)
    torch.testing.assert_close(both.model.decode_latents(mean), expected, rtol=1e-4, atol=1e-4)
    assert both.pipeline.vae.config.scaling_factor == scale


def test_the_pipeline_is_complete(both: Both) -> None:
    """Prediction, schedule and tokenizers are those of the family, and every file is where diffusers expects it."""
    config = both.pipeline.scheduler.config
    assert config.prediction_type == "epsilon"
    torch.testing.assert_close(both.pipeline.scheduler.alphas_cumprod, both.model.schedule.alphas_cumprod)
    for part in both.model.family.text_parts:
        tokenizer = getattr(both.pipeline, part.part.replace("text_encoder", "tokenizer"))
        assert (tokenizer.model_max_length, tokenizer.pad_token_id) == (77, part.pad_id)
        assert tokenizer("a cat").input_ids[1:-1] == both.model.tokenizer.encode("a cat")
    assert not [path for path in both.folder.parent.iterdir() if path.name.startswith(".tmp")]


# ------------------------------------------------------------------------------------------------ reading


def added_by_folders(name: str, toy: dict[str, torch.Tensor]) -> set[str]:
    """Tensors that a folder has no place for and that are made anew on reading."""
    added = {key for key in toy if key.endswith("logit_scale")}
    if name == "sd2":
        added |= {key for key in toy if ".resblocks.2." in key or key.endswith("text_projection")}
    return added


def test_file_to_folder_to_file(family: Family, both: Both, tmp_path: Path) -> None:
    save_checkpoint(open_checkpoint(both.folder), tmp_path / "back.safetensors")
    back, toy = open_checkpoint(tmp_path / "back.safetensors"), toy_tensors(family.name)
    tables = {name for name in toy if "." not in name}
    assert set(back) == set(toy) - tables
    added = added_by_folders(family.name, toy)
    for name in back:
        assert back.info(name).shape == toy[name].shape
        assert name in added or torch.equal(back[name], toy[name]), name


@torch.no_grad()
def test_a_folder_loads_as_the_file_does(both: Both) -> None:
    checkpoint = open_checkpoint(both.folder)
    assert checkpoint.is_folder
    assert all(tuple(checkpoint[name].shape) == checkpoint.info(name).shape for name in checkpoint)
    model = load_model(checkpoint, device=CPU)
    text = model.encode_text([PROMPT])
    torch.testing.assert_close(text.context, both.model.encode_text([PROMPT]).context)
    noisy, timestep = torch.randn(1, 4, 16, 16), torch.tensor([500])
    torch.testing.assert_close(model.denoise(noisy, timestep, text), both.model.denoise(noisy, timestep, text))
    assert {target.name for target in model.targets} == {target.name for target in both.model.targets}


@pytest.mark.parametrize("how", ["as diffusers saves", "fp16 variant", "pickles", "shards"])
def test_folders_that_diffusers_writes(both: Both, family: Family, tmp_path: Path, how: str) -> None:
    options: dict[str, Any] = {
        "as diffusers saves": {},
        "fp16 variant": {"variant": "fp16"},
        "pickles": {"safe_serialization": False},
        "shards": {"max_shard_size": "4MB"},
    }[how]
    both.pipeline.save_pretrained(tmp_path / "theirs", **options)
    ours, theirs = open_checkpoint(both.folder), open_checkpoint(tmp_path / "theirs")
    assert theirs.family.name == family.name
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_half_precision_folder(family: Family, toy_file: ToyFile, tmp_path: Path) -> None:
    save_checkpoint(open_checkpoint(toy_file(family.name)), tmp_path / "half", dtype=torch.float16)
    half = open_checkpoint(tmp_path / "half")
    assert {half.info(name).dtype for name in half if not name.endswith("position_ids")} == {torch.float16}
    name = f"{family.unet_prefix}out.2.weight"
    assert torch.equal(half[name], toy_tensors(family.name)[name].half())


def test_family_without_a_text_config(both_of: Callable[[str], Both], tmp_path: Path) -> None:
    for name in FAMILIES:
        copy = tmp_path / name
        save_checkpoint(open_checkpoint(both_of(name).folder), copy)
        (copy / "text_encoder" / "config.json").unlink()
        assert open_checkpoint(copy).family.name == name


def test_v_prediction_folder(toy_file: ToyFile, tmp_path: Path) -> None:
    model = load_model(toy_file("sd2"), device=CPU, prediction="v", zero_terminal_snr=True)
    save_checkpoint(model, tmp_path / "v")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "v", local_files_only=True)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.alphas_cumprod[-1] == 0


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture
def folder(toy_file: ToyFile, tmp_path: Path) -> Path:
    save_checkpoint(open_checkpoint(toy_file("sd1")), tmp_path / "model")
    return tmp_path / "model"


def test_a_part_without_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="vae holds no weights"):
        open_checkpoint(folder)


def test_a_missing_text_encoder(folder: Path) -> None:
    for path in (folder / "text_encoder").iterdir():
        path.unlink()
    (folder / "text_encoder").rmdir()
    with pytest.raises(CheckpointError, match="no text encoder"):
        open_checkpoint(folder)


def test_damaged_json(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [{"a": "../outside.safetensors"}, {}, "text", {"a": "/etc/passwd"}])
def test_an_index_that_points_elsewhere(folder: Path, weight_map: object) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(FileFormatError, match="is not a list of the files beside it"):
        open_checkpoint(folder)
