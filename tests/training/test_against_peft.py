"""LoRA gradients, files and images against diffusers, transformers and PEFT, on toys with the same weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraloom.adapters.attach import AdapterSet, attach, create_adapters, read_adapters
from loraloom.adapters.lora import LoraAdapter
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget, write_adapter_file
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.saving import save_checkpoint
from loraloom.training.step import Objective

FAMILIES = ["sd1", "sd2", "sdxl"]
UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
RES_LAYERS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
RANK = 3
CAPTION = "a red apple, on a table"


@dataclass
class Twins:
    """The same checkpoint as our model and as a diffusers pipeline."""

    ours: LoadedModel
    theirs: Any
    folder: Path


@pytest.fixture(params=FAMILIES)
def twins(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path], tmp_path: Path) -> Twins:
    path = checkpoints(request.param)
    model = load_model(path, device=torch.device("cpu"))
    folder = path.parent / f"{request.param}-diffusers"
    if not folder.exists():
        save_checkpoint(model, folder)
    kind = StableDiffusionXLPipeline if request.param == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return Twins(model, pipeline, folder)


def their_parts(pipeline: Any) -> dict[str, torch.nn.Module]:
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    if getattr(pipeline, "text_encoder_2", None) is not None:
        parts["text_encoder_2"] = pipeline.text_encoder_2
    return parts


def their_name(target: AdapterTarget, part: torch.nn.Module) -> str:
    """transformers 5 dropped the text_model level that older releases have."""
    name = target.diffusers_name
    modules = dict(part.named_modules())
    return name if name in modules else name.removeprefix("text_model.")


def random_adapters(model: LoadedModel, settings: AdapterSettings) -> AdapterSet:
    adapters = create_adapters(settings, model.targets, seed=5)
    generator = torch.Generator().manual_seed(1)
    for _, adapter in adapters.items():
        assert isinstance(adapter, LoraAdapter)
        adapter.up.data.normal_(0, 0.05, generator=generator)
        adapter.down.data.normal_(0, 0.3, generator=generator)
    return adapters


def add_same_lora_to(
    pipeline: Any, adapters: AdapterSet, *, conv: bool, alpha: float = 1.5
) -> dict[str, tuple[Tensor, Tensor]]:
    """Put PEFT LoRA layers with our values on the pipeline; the live (down, up) parameters by kohya name."""
    parts = their_parts(pipeline)
    for name, part in parts.items():
        layers = (UNET_LAYERS + (RES_LAYERS if conv else [])) if name == "unet" else TEXT_LAYERS
        config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=layers)
        part.add_adapter(config)
        part.eval()
    live = {}
    for target, adapter in adapters.items():
        assert isinstance(adapter, LoraAdapter)
        part = parts[target.part]
        layer = part.get_submodule(their_name(target, part))
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.data.copy_(adapter.down.data.reshape(down.shape))
        up.data.copy_(adapter.up.data.reshape(up.shape))
        live[target.name] = (down, up)
    return live


def their_prediction(pipeline: Any, noisy: Tensor, timestep: Tensor) -> Tensor:
    if isinstance(pipeline, StableDiffusionXLPipeline):
        context, _, pooled, _ = pipeline.encode_prompt(
            CAPTION, device=torch.device("cpu"), do_classifier_free_guidance=False
        )
        side = noisy.shape[-1] * 8
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)}
        return pipeline.unet(noisy, timestep, context, added_cond_kwargs=added).sample
    context, _ = pipeline.encode_prompt(CAPTION, torch.device("cpu"), 1, False)
    return pipeline.unet(noisy, timestep, context).sample


@contextmanager
def attached(model: LoadedModel, adapters: AdapterSet) -> Iterator[None]:
    with attach(adapters, {target.name: model.layer(target) for target in model.targets}):
        yield


@pytest.mark.parametrize("conv", [False, True], ids=["default layers", "with convolutions"])
def test_loss_and_lora_gradients_agree(twins: Twins, conv: bool) -> None:
    settings = AdapterSettings(rank=RANK, alpha=1.5, conv_rank=RANK if conv else 0, conv_alpha=1.5 if conv else None)
    adapters = random_adapters(twins.ours, settings)
    live = add_same_lora_to(twins.theirs, adapters, conv=conv)
    assert len(live) == len(adapters)

    noisy, noise, timestep = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([321])
    objective = Objective(twins.ours.schedule, twins.ours.prediction, seed=0)
    with attached(twins.ours, adapters):
        predicted = twins.ours.denoise(noisy, timestep, twins.ours.encode_text([CAPTION]))
        loss = objective.loss(predicted, objective.target(noisy, noise, timestep), timestep).sum()
        loss.backward()
    reference = their_prediction(twins.theirs, noisy, timestep)
    torch.testing.assert_close(predicted, reference, rtol=1e-4, atol=1e-5)
    target = objective.target(noisy, noise, timestep)
    torch.nn.functional.mse_loss(reference, target).backward()

    largest = max(
        float(grad.abs().max()) for pair in live.values() for grad in (p.grad for p in pair) if grad is not None
    )
    compared = 0
    for spot, adapter in adapters.items():
        assert isinstance(adapter, LoraAdapter)
        for ours, theirs in zip((adapter.down, adapter.up), live[spot.name], strict=True):
            if theirs.grad is None:  # a layer above the one that clip skip reads
                assert ours.grad is None or float(ours.grad.abs().max()) == 0.0, spot.name
                continue
            assert ours.grad is not None, spot.name
            torch.testing.assert_close(ours.grad.reshape(theirs.shape), theirs.grad, rtol=1e-3, atol=1e-5 * largest)
            compared += 1
    assert compared >= 2 * (len(adapters) - 2 * len(TEXT_LAYERS))


@pytest.mark.parametrize("conv", [False, True], ids=["default layers", "with convolutions"])
def test_our_file_loads_in_diffusers_with_every_key_used(
    twins: Twins, conv: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = AdapterSettings(rank=RANK, alpha=1.5, conv_rank=RANK if conv else 0, conv_alpha=1.5 if conv else None)
    adapters = random_adapters(twins.ours, settings)
    path = tmp_path / "lora.safetensors"
    write_adapter_file(path, adapters.file_tensors(), metadata={"ss_network_dim": str(RANK)}, dtype=torch.float32)
    noisy, timestep = torch.randn(1, 4, 8, 8), torch.tensor([321])
    with torch.no_grad(), attached(twins.ours, read_adapters(path, twins.ours.targets)):
        predicted = twins.ours.denoise(noisy, timestep, twins.ours.encode_text([CAPTION]))

    with caplog.at_level(logging.WARNING):
        twins.theirs.load_lora_weights(tmp_path, weight_name=path.name, local_files_only=True)
    complaints = [record.getMessage() for record in caplog.records if "unexpected" in record.getMessage().lower()]
    assert complaints == []
    loaded = {
        (name, key)
        for name, part in their_parts(twins.theirs).items()
        for key, value in get_peft_model_state_dict(part, adapter_name="default_0").items()
        if float(value.abs().max()) > 0
    }
    assert len(loaded) == 2 * len(adapters)
    with torch.no_grad():
        reference = their_prediction(twins.theirs, noisy, timestep)
    torch.testing.assert_close(predicted, reference, rtol=1e-4, atol=1e-5)


def test_a_lora_that_peft_made_loads_from_kohya_names(twins: Twins, tmp_path: Path) -> None:
    """PEFT's LoRA, put under kohya's names by diffusers' own conversion, gives the same output here."""
    adapters = random_adapters(twins.ours, AdapterSettings(rank=RANK))  # the conversion always writes alpha = rank
    live = add_same_lora_to(twins.theirs, adapters, conv=False, alpha=RANK)
    state = {
        f"{name}.{key}": value.contiguous()
        for name, part in their_parts(twins.theirs).items()
        for key, value in get_peft_model_state_dict(part).items()
    }
    path = tmp_path / "peft.safetensors"
    save_file(convert_state_dict_to_kohya(state), path)
    assert any(key.startswith("lora_unet_") and key.endswith(".alpha") for key in load_file(path))
    read = read_adapters(path, twins.ours.targets)
    assert len(read) == len(live)
    noisy, timestep = torch.randn(1, 4, 8, 8), torch.tensor([321])
    with torch.no_grad():
        with attached(twins.ours, read):
            predicted = twins.ours.denoise(noisy, timestep, twins.ours.encode_text([CAPTION]))
        reference = their_prediction(twins.theirs, noisy, timestep)
    torch.testing.assert_close(predicted, reference, rtol=1e-4, atol=1e-5)


def test_a_lora_saved_by_diffusers_loads(twins: Twins, tmp_path: Path) -> None:
    adapters = random_adapters(twins.ours, AdapterSettings(rank=RANK))
    add_same_lora_to(twins.theirs, adapters, conv=False)
    layers = {
        "unet_lora_layers" if name == "unet" else f"{name}_lora_layers": get_peft_model_state_dict(part)
        for name, part in their_parts(twins.theirs).items()
    }
    twins.theirs.save_lora_weights(tmp_path, **layers)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert all("lora_A" in key or "lora_B" in key or "lora." in key for key in load_file(path))
    checkpoint = open_checkpoint(twins.ours.checkpoint.path)
    read = dict(read_adapters(path, checkpoint.family.adapter_targets(checkpoint.infos)).items())
    for target, adapter in adapters.items():
        other = read[target]
        assert isinstance(adapter, LoraAdapter) and isinstance(other, LoraAdapter)
        assert torch.equal(other.down, adapter.down) and torch.equal(other.up, adapter.up)
