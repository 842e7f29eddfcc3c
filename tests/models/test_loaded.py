"""A loaded toy of every family: text, images, denoising, adapter layers, precision, and giving its tensors back."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.errors import CheckpointError, FileFormatError, SettingsError
from loraloom.events import Event, Notice
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.conditioning import BREAK, Segment
from loraloom.models.family import Family
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.saving import save_checkpoint
from loraloom.models.vae_file import replace_vae
from loraloom.weights.inspect import inspect_file
from toys import toy_tensors

CPU = torch.device("cpu")
ToyFile = Callable[[str], Path]


def pass_through(model: LoadedModel, text: str = "a cat") -> torch.Tensor:
    conditioning = model.encode_text([text])
    return model.denoise(torch.ones(1, 4, 8, 8), torch.tensor([500]), conditioning)


@torch.no_grad()
def test_a_pass_through_every_part_is_finite_and_not_constant(model: LoadedModel) -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = model.encode_images(pixels)
    conditioning = model.encode_text(["a cat", "a dog"])
    predicted = model.denoise(mean, torch.tensor([10, 900]), conditioning)
    picture = model.decode_latents(predicted)
    assert mean.shape == std.shape == predicted.shape == (2, 4, 8, 8)
    assert picture.shape == (2, 3, 64, 64)
    assert (std > 0).all()
    for tensor in (conditioning.context, mean, std, predicted, picture):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        assert tensor.std() > 0.01
    assert picture.abs().max() <= 1
    assert not torch.allclose(predicted[0], predicted[1], atol=1e-2)
    assert not any(parameter.requires_grad for part in model.parts.values() for parameter in part.parameters())
    assert not any(part.training for part in model.parts.values())


@torch.no_grad()
def test_a_text_means_the_same_alone_and_in_a_batch(model: LoadedModel) -> None:
    texts = ["a cat", "word " * 100, [Segment("a"), Segment("dog", 1.4), BREAK, Segment("b"), BREAK, Segment("c")]]
    batch = model.encode_text(texts)
    assert batch.context.shape[1] == 77 * 6
    noisy, timestep = torch.randn(1, 4, 8, 8), torch.tensor([300])
    for index, text in enumerate(texts):
        alone = model.encode_text([text])
        torch.testing.assert_close(batch[index].context[:, : alone.context.shape[1]], alone.context)
        torch.testing.assert_close(
            model.denoise(noisy, timestep, batch[index]), model.denoise(noisy, timestep, alone), rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_emphasis_changes_the_text_and_can_be_left_out(model: LoadedModel) -> None:
    plain = model.encode_text(["a cat"])
    strong = model.encode_text([[Segment("a"), Segment("cat", 1.5)]])
    ignored = model.encode_text([[Segment("a"), Segment("cat", 1.5)]], emphasis="ignore")
    assert torch.equal(ignored.context, plain.context)
    assert not torch.allclose(strong.context, plain.context, atol=1e-2)
    torch.testing.assert_close(strong.context[:, 2] / plain.context[:, 2] / 1.5, torch.ones_like(plain.context[:, 2]),
                               rtol=0.2, atol=0.2)  # fmt: skip
    if plain.pooled is not None:
        assert torch.equal(strong.pooled, plain.pooled)


def test_counting_and_cutting_long_texts(model: LoadedModel) -> None:
    text = "cat " * 160
    assert model.measure_text(text).tokens == 160
    assert model.measure_text(text, max_chunks=2).dropped == 10
    with torch.no_grad():
        cut, whole = model.encode_text([text], max_chunks=2), model.encode_text(["cat " * 150])
    assert torch.equal(cut.context, whole.context)


@torch.no_grad()
def test_clip_skip_reads_earlier_layers_and_has_a_limit(model: LoadedModel) -> None:
    deepest = model.max_clip_skip()
    assert deepest == {"sd1": 3, "sd2": 2, "sdxl": 2}[model.family.name]
    contexts = [model.encode_text(["a cat"], clip_skip=skip).context for skip in range(1, deepest + 1)]
    assert torch.equal(model.encode_text(["a cat"]).context, contexts[0])
    for index, context in enumerate(contexts[1:]):
        assert not torch.allclose(context, contexts[index], atol=1e-2)
    for skip in (0, deepest + 1):
        with pytest.raises(SettingsError, match=f"clip_skip is {skip}, but this model allows 1 to {deepest}"):
            model.encode_text(["a cat"], clip_skip=skip)


def test_gradients_reach_every_layer_that_is_read(model: LoadedModel) -> None:
    """What a LoRA on each target needs: a gradient at the layer's output."""
    gradients: dict[str, float] = {}

    def hook(name: str) -> Callable[..., torch.Tensor]:
        def scale(layer: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            probe = torch.ones((), requires_grad=True)
            probe.register_hook(lambda grad: gradients.__setitem__(name, grad.abs().item()))
            return output * probe

        return scale

    for target in model.targets:
        layer = model.layer(target)
        assert tuple(layer.weight.shape) == target.shape
        layer.register_forward_hook(hook(target.name))
    conditioning = model.encode_text(["a cat on a hill"])
    predicted = model.denoise(torch.randn(1, 4, 16, 16), torch.tensor([500]), conditioning)
    (predicted - 1).square().mean().backward()
    silent = {target.name for target in model.targets if gradients.get(target.name, 0.0) == 0.0}
    unread = {name for name in silent if name.startswith("lora_te1_text_model_encoder_layers_2_")}
    assert silent == unread  # SDXL's first encoder is read at its last layer but one


def test_gradient_checkpointing_gives_the_same_gradient(model: LoadedModel) -> None:
    results = []
    for recompute in ("none", "selective", "full"):
        for part in ("unet", *model.text_encoders):
            model.parts[part].gradient_checkpointing = recompute  # type: ignore[assignment]
        weight = model.layer(model.targets[0]).weight
        weight.requires_grad_(True)
        weight.grad = None
        pass_through(model).square().mean().backward()
        assert weight.grad is not None
        results.append(weight.grad.clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@torch.no_grad()
def test_sdxl_is_told_an_uncropped_picture_unless_sizes_are_given(toy_file: ToyFile) -> None:
    model = load_model(toy_file("sdxl"), device=CPU)
    conditioning = model.encode_text(["a cat"])
    noisy, timestep = torch.randn(1, 4, 8, 16), torch.tensor([500])
    default = model.denoise(noisy, timestep, conditioning)
    same = model.denoise(noisy, timestep, conditioning.with_sizes(torch.tensor([[64, 128, 0, 0, 64, 128.0]])))
    other = model.denoise(noisy, timestep, conditioning.with_sizes(torch.tensor([[64, 128, 32, 0, 64, 128.0]])))
    assert torch.equal(default, same)
    assert not torch.allclose(default, other, atol=1e-4)


@torch.no_grad()
def test_the_old_names_of_clip_in_sd1(tmp_path: Path, toy_file: ToyFile) -> None:
    old = {name.replace("transformer.text_model.", "transformer."): t for name, t in toy_tensors("sd1").items()}
    write_tensors(tmp_path / "old.safetensors", old)
    model = load_model(tmp_path / "old.safetensors", device=CPU)
    new = load_model(toy_file("sd1"), device=CPU)
    torch.testing.assert_close(pass_through(model), pass_through(new))
    assert set(model.tensors()) == set(old)
    assert [target.name for target in model.targets] == [target.name for target in new.targets]
    assert all(target.tensor in old for target in model.targets)


# ------------------------------------------------------------------------------------------------ precision


def half_file(family: Family, folder: Path) -> Path:
    half = {name: t.half() if t.is_floating_point() else t for name, t in toy_tensors(family.name).items()}
    write_tensors(folder / "half.safetensors", half)
    return folder / "half.safetensors"


@torch.no_grad()
def test_weights_kept_in_file_precision_compute_the_same(family: Family, tmp_path: Path) -> None:
    path = half_file(family, tmp_path)
    kept = load_model(path, device=CPU, keep_file_precision=True)
    inflated = load_model(path, device=CPU)
    assert {p.dtype for part in kept.parts.values() for p in part.parameters()} == {torch.float16}
    assert {p.dtype for part in inflated.parts.values() for p in part.parameters()} == {torch.float32}
    torch.testing.assert_close(pass_through(kept), pass_through(inflated))
    latents = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(kept.decode_latents(latents), inflated.decode_latents(latents), rtol=1e-4, atol=1e-4)


def test_kept_weights_are_mapped_not_copied(family: Family, tmp_path: Path) -> None:
    """Two loads of one opened file share every weight's memory."""
    from loraloom.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(half_file(family, tmp_path))
    first, second = (load_model(checkpoint, device=CPU, keep_file_precision=True) for _ in range(2))
    for part in first.parts:
        for (name, one), two in zip(first.parts[part].named_parameters(), second.parts[part].parameters(), strict=True):
            assert one.data_ptr() == two.data_ptr(), name


@torch.no_grad()
def test_bfloat16(model: LoadedModel, toy_file: ToyFile) -> None:
    low = load_model(toy_file(model.family.name), device=CPU, compute=torch.bfloat16)
    predicted = pass_through(low)
    assert predicted.dtype == torch.float32
    assert low.encode_text(["a cat"]).context.dtype == torch.bfloat16
    reference = pass_through(model)
    assert (predicted - reference).norm() / reference.norm() < 0.05


def test_with_fp16_the_vae_computes_in_fp32_and_says_so(toy_file: ToyFile) -> None:
    heard: list[Event] = []
    model = load_model(toy_file("sdxl"), device=CPU, compute=torch.float16, listener=heard.append)
    assert model.vae_compute == torch.float32
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in model.unet.parameters()} == {torch.float16}
    assert any("VAE" in event.text for event in heard if isinstance(event, Notice))


def test_loading_imports_neither_a_compiler_nor_other_model_libraries(toy_file: ToyFile) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from loraloom.models.loaded import load_model;"
        "load_model(Path(sys.argv[1]), device=torch.device('cpu'), keep_file_precision=True);"
        "heavy = {'torch._dynamo.symbolic_convert', 'transformers', 'diffusers', 'peft', 'safetensors'};"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(toy_file("sdxl"))]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == []


# ------------------------------------------------------------------------------------------------ offload


@torch.no_grad()
def test_offloaded_parts_come_and_go(model: LoadedModel, toy_file: ToyFile) -> None:
    """Without an accelerator the moves are still made: the resting weights return, the same objects."""
    resting = load_model(toy_file(model.family.name), device=CPU, keep_file_precision=True, offload=True)
    before = {name: id(p) for name, p in resting.unet.named_parameters()}
    torch.testing.assert_close(pass_through(resting), pass_through(model))
    with resting.using("unet", "vae"), resting.using("unet"):
        inside = {name: id(p) for name, p in resting.unet.named_parameters()}
        assert set(inside) == set(before)
        assert all(inside[name] != before[name] for name in before)
        torch.testing.assert_close(pass_through(resting), pass_through(model))
        assert {name: id(p) for name, p in resting.unet.named_parameters()} == inside
    assert {name: id(p) for name, p in resting.unet.named_parameters()} == before


# ------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_tensors_are_those_of_the_file(family: Family, tmp_path: Path, compute: torch.dtype) -> None:
    extra = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    write_tensors(tmp_path / "model.safetensors", toy_tensors(family.name) | extra)
    file = open_tensors(tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors", device=CPU, compute=compute)
    tensors = model.tensors()
    assert set(tensors) == set(file)
    for name in file:
        assert tensors.info(name) == file.info(name)
        assert tensors[name].dtype == file[name].dtype
        assert torch.equal(tensors[name], file[name]), name


def test_a_changed_weight_is_given_back_changed(family: Family, tmp_path: Path) -> None:
    model = load_model(half_file(family, tmp_path), device=CPU)
    name = f"{family.unet_prefix}out.2.weight"
    with torch.no_grad():
        model.unet.get_parameter("out.2.weight").add_(1.0)
    changed = model.tensors()[name]
    assert changed.dtype == torch.float16
    torch.testing.assert_close(changed, model.checkpoint[name] + 1)
    assert torch.equal(open_tensors(tmp_path / "half.safetensors")[name], model.checkpoint[name])


# ------------------------------------------------------------------------------------------------ damaged weights

UNET_WEIGHT = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
TEXT_WEIGHT = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias"
VAE_WEIGHT = "first_stage_model.decoder.up.1.block.0.conv1.weight"


def with_values(name: str, *values: float) -> dict[str, torch.Tensor]:
    """The toy with a few values of one tensor replaced."""
    tensor = toy_tensors("sd1")[name].clone()
    tensor.view(-1)[3 : 3 + len(values)] = torch.tensor(values)
    return toy_tensors("sd1") | {name: tensor}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])  # mapped, and converted
@pytest.mark.parametrize(
    ("name", "values"),
    [
        (UNET_WEIGHT, (math.nan, math.nan)),
        (TEXT_WEIGHT, (math.inf,)),
        (UNET_WEIGHT, (math.inf, -math.inf, 7.0)),
    ],
)
def test_damaged_weights_are_told_by_name(
    tmp_path: Path, name: str, values: tuple[float, ...], compute: torch.dtype
) -> None:
    path = tmp_path / "base.safetensors"
    write_tensors(path, with_values(name, *values))
    bad = sum(not math.isfinite(value) for value in values)
    with pytest.raises(CheckpointError) as caught:
        load_model(path, device=CPU, compute=compute)
    assert caught.value.problem.startswith(f"{path}: the tensor {name} holds {bad} of ")
    assert "NaN or infinite" in caught.value.problem


def test_large_values_are_no_damage(tmp_path: Path) -> None:
    """Their sum is infinite, and each of them is not."""
    tensors = with_values(UNET_WEIGHT, 3e38, 3e38, 3e38)
    write_tensors(tmp_path / "base.safetensors", tensors)
    model = load_model(tmp_path / "base.safetensors", device=CPU)
    live = dict(model.unet.named_parameters())[UNET_WEIGHT.removeprefix("model.diffusion_model.")]
    assert torch.equal(live, tensors[UNET_WEIGHT])


def test_values_beyond_the_precision_asked_for(tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", with_values(UNET_WEIGHT, 70_000.0))
    with pytest.raises(CheckpointError, match=r"\(float32\) holds values beyond the range of float16") as caught:
        load_model(tmp_path / "base.safetensors", device=CPU, compute=torch.float16)
    assert UNET_WEIGHT in caught.value.problem
    assert caught.value.hint == "compute in bf16 or float"


def test_a_damaged_vae_is_told_when_it_is_used_unless_another_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    write_tensors(path, with_values(VAE_WEIGHT, math.nan))
    write_tensors(tmp_path / "whole.safetensors", toy_tensors("sd1"))
    model = load_model(path, device=CPU)
    pass_through(model)
    for use in (
        lambda: model.check_part("vae"),
        lambda: model.encode_images(torch.zeros(1, 3, 64, 64)),
        lambda: model.decode_latents(torch.zeros(1, 4, 8, 8)),
    ):
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: the tensor {VAE_WEIGHT} holds 1 of")):
            use()
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: the tensor {VAE_WEIGHT} holds 1 of")):
        replace_vae(model, path)
    replace_vae(model, tmp_path / "whole.safetensors")
    assert model.decode_latents(torch.zeros(1, 4, 8, 8)).isfinite().all()


def flip(path: Path, tensor: torch.Tensor) -> None:
    """Change one bit of a tensor in a file; the value stays finite."""
    data, raw = bytearray(path.read_bytes()), tensor.numpy().tobytes()
    data[data.index(raw) + 4 * (tensor.numel() // 3)] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [UNET_WEIGHT, TEXT_WEIGHT, VAE_WEIGHT])
def test_a_flipped_bit_in_a_ckpt_is_found_on_loading(tmp_path: Path, name: str, compute: torch.dtype) -> None:
    path = tmp_path / "base.ckpt"
    write_tensors(path, toy_tensors("sd1"))
    flip(path, toy_tensors("sd1")[name])
    with pytest.raises(FileFormatError, match="is damaged") as caught:
        load_model(path, device=CPU, compute=compute)
    assert name in caught.value.problem


def test_a_flipped_bit_in_a_part_of_a_folder_is_found_on_loading(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    save_checkpoint(toy_tensors("sd1"), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    with open_tensors(weights) as file:
        write_tensors(weights.with_suffix(".bin"), file)
    weights.unlink()
    load_model(folder, device=CPU)
    flip(weights.with_suffix(".bin"), toy_tensors("sd1")[UNET_WEIGHT])
    with pytest.raises(FileFormatError, match="is damaged"):
        load_model(folder, device=CPU)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.diffusion_model.out.2.weight", None, "is missing"),
        ("model.diffusion_model.input_blocks.1.0.out_layers.3.weight", None, "is missing"),
        ("model.diffusion_model.out.2.bias", lambda tensor: tensor[:3], "would fit its neighbours"),
        ("first_stage_model.decoder.conv_out.bias", None, "is missing"),
        ("model.diffusion_model.out.2.weight", lambda tensor: tensor.to(torch.int8), "holds int8, not floating-point"),
        ("first_stage_model.decoder.conv_in.weight", lambda tensor: tensor != 0, "holds bool, not floating-point"),
        (
            "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
            lambda tensor: tensor.to(torch.int32),
            "holds int32, not floating-point",
        ),
    ],
)
def test_what_is_wrong_with_a_tensor_names_the_file(
    name: str, change: Callable[[torch.Tensor], torch.Tensor] | None, words: str, tmp_path: Path
) -> None:
    """Whole numbers are what a program's own quantization left: as weights they would paint something else."""
    path, tensors = tmp_path / "named.safetensors", dict(toy_tensors("sd1"))
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path, device=torch.device("cpu"))
    assert caught.value.problem.startswith(f"{path}: ")
    assert words in inspect_file(path).facts["cannot be used"]
