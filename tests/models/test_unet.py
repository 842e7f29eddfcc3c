"""The U-Net against diffusers' with the same weights, for the three families; checkpointing, precision, odd sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from layouts import LAYOUTS, part_shapes
from loraloom.errors import CheckpointError
from loraloom.models.names import checkpoint_tensor, pairs_from_diffusers
from loraloom.models.unet import Recompute, UNet, eight_heads, heads_of_64, timestep_embedding

CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 24, "attention_head_dim": 8},
    "sd2": {
        "block_out_channels": (64, 128, 128, 128),
        "cross_attention_dim": 24,
        "attention_head_dim": (1, 2, 2, 2),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 1, 2),
        "cross_attention_dim": 24,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
    "sd1-inpainting": {
        "in_channels": 9,
        "block_out_channels": (32, 32, 32, 32),
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
    },
    "sd1-narrow-and-shallow": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
    },
}


def randomize(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=spread)


def oracle(name: str) -> UNet2DConditionModel:
    model = UNet2DConditionModel(sample_size=16, **CONFIGS[name])
    randomize(model)
    return model.double().eval().requires_grad_(False)


def converted(tensors: Mapping[str, Tensor], heads_rule: Callable[[int], int]) -> UNet:
    pairs = pairs_from_diffusers("unet", {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    assert {pair.diffusers for pair in pairs} == set(tensors)
    ours = {pair.checkpoint: checkpoint_tensor([pair], tensors.__getitem__) for pair in pairs}
    with torch.device("meta"):
        unet = UNet.from_shapes({key: tuple(tensor.shape) for key, tensor in ours.items()}, heads_rule=heads_rule)
    unet.load_state_dict(ours, assign=True)
    return unet.eval().requires_grad_(False)


def heads_rule(name: str) -> Callable[[int], int]:
    return eight_heads if name.startswith("sd1") else heads_of_64


class Inputs:
    def __init__(self, name: str, *, height: int = 16, width: int = 16, dtype: torch.dtype = torch.float64) -> None:
        self.x = torch.randn(2, CONFIGS[name].get("in_channels", 4), height, width, dtype=dtype, requires_grad=True)
        self.timesteps = torch.tensor([3, 981])
        self.context = torch.randn(2, 11, 24, dtype=dtype, requires_grad=True)
        self.pooled = torch.randn(2, 16, dtype=dtype)
        self.sizes = torch.tensor([[64, 48, 0, 8, 64, 64], [512, 768, 4, 0, 128, 96]])
        self.is_xl = name == "sdxl"

    def ours(self, unet: UNet) -> Tensor:
        if not self.is_xl:
            return unet(self.x, self.timesteps, self.context)
        sinusoids = timestep_embedding(self.sizes.flatten(), 8).reshape(2, -1).to(self.pooled.dtype)
        return unet(self.x, self.timesteps, self.context, torch.cat([self.pooled, sinusoids], dim=-1))

    def theirs(self, model: UNet2DConditionModel) -> Tensor:
        added = {"text_embeds": self.pooled, "time_ids": self.sizes} if self.is_xl else None
        return model(self.x, self.timesteps, self.context, added_cond_kwargs=added).sample

    def gradients(self, output: Tensor) -> tuple[Tensor, ...]:
        probe = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
        return torch.autograd.grad((output * probe).sum(), (self.x, self.context))


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("size", [(16, 16), (10, 14)])
@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients_equal_diffusers(name: str, size: tuple[int, int]) -> None:
    model = oracle(name)
    unet = converted(model.state_dict(), heads_rule(name))
    inputs = Inputs(name, height=size[0], width=size[1])
    ours, theirs = inputs.ours(unet), inputs.theirs(model)
    assert theirs.abs().mean() > 0.05
    assert_close(ours, theirs, 1e-12)
    for mine, reference in zip(inputs.gradients(ours), inputs.gradients(theirs), strict=True):
        assert_close(mine, reference, 1e-10)

    model, unet, single = model.float(), unet.float(), Inputs(name, dtype=torch.float32)
    assert_close(single.ours(unet), single.theirs(model), 1e-5)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_checkpointing_changes_no_bit_and_keeps_less(name: str) -> None:
    unet = converted(oracle(name).float().state_dict(), heads_rule(name))
    inputs = Inputs(name, dtype=torch.float32)
    weights = {parameter.data_ptr() for parameter in unet.parameters()}

    def run(gradient_checkpointing: Recompute) -> tuple[Tensor, tuple[Tensor, ...], int]:
        unet.gradient_checkpointing = gradient_checkpointing
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = inputs.ours(unet)
        return output.detach(), inputs.gradients(output), sum(kept.values())

    output, gradients, kept = run("none")
    ways: tuple[Recompute, ...] = ("selective", "full")
    for recompute in ways:  # how much each keeps is tested with the plan, which counts it
        output_again, gradients_again, kept_less = run(recompute)
        assert torch.equal(output, output_again)
        assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_again, strict=True))
        assert kept_less < 0.5 * kept


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_half_weights_compute_in_the_precision_of_the_latents(name: str) -> None:
    tensors = oracle(name).half().state_dict()
    unet = converted(tensors, heads_rule(name))
    inflated = converted({key: tensor.float() for key, tensor in tensors.items()}, heads_rule(name))
    inputs = Inputs(name, dtype=torch.float32)
    ours, reference = inputs.ours(unet), inputs.ours(inflated)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, reference)
    for mine, theirs in zip(inputs.gradients(ours), inputs.gradients(reference), strict=True):
        assert_close(mine, theirs, 1e-6)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_bfloat16_is_finite_and_near(name: str) -> None:
    model = oracle(name).float()
    unet = converted(model.state_dict(), heads_rule(name))
    exact = Inputs(name, dtype=torch.float32)
    rough = copy.copy(exact)
    rough.x, rough.context, rough.pooled = (
        tensor.detach().bfloat16().requires_grad_(True) for tensor in (exact.x, exact.context, exact.pooled)
    )
    expected = exact.ours(unet)
    output = rough.ours(unet.bfloat16())
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in rough.gradients(output))
    assert (output.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_layout_stays_channels_first(name: str) -> None:
    unet = converted(oracle(name).float().state_dict(), heads_rule(name))
    contiguous: list[bool] = []
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output: contiguous.append(output.is_contiguous()))
    Inputs(name, dtype=torch.float32).ours(unet)
    assert len(contiguous) > 100
    assert all(contiguous)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_modules_carry_exactly_the_keys_and_shapes_of_the_real_file(layout: str) -> None:
    shapes = part_shapes(layout, "model.diffusion_model.")
    with torch.device("meta"):
        unet = UNet.from_shapes(shapes, heads_rule=eight_heads if layout == "sd15" else heads_of_64)
    assert {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "gone", ["time_embed.0.weight", "middle_block.1.proj_in.weight", "output_blocks.3.0.in_layers.2", "out.2.bias"]
)
def test_a_missing_tensor_is_named(gone: str) -> None:
    shapes = {k: s for k, s in part_shapes("sd15", "model.diffusion_model.").items() if not k.startswith(gone)}
    with torch.device("meta"), pytest.raises(CheckpointError) as caught:
        UNet.from_shapes(shapes, heads_rule=eight_heads)
    assert gone in caught.value.problem


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("input_blocks.1.0.in_layers.0.weight", (321,)),
        ("input_blocks.1.0.in_layers.2.weight", (320, 320)),
        ("input_blocks.0.0.weight", (320,)),
        ("input_blocks.1.0.in_layers.2.bias", (321,)),
        ("input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", (321, 320)),
    ],
)
def test_an_odd_shape_is_a_checkpoint_error(key: str, shape: tuple[int, ...]) -> None:
    shapes = {**part_shapes("sd15", "model.diffusion_model."), key: shape}
    with torch.device("meta"), pytest.raises(CheckpointError):
        UNet.from_shapes(shapes, heads_rule=eight_heads)


def test_missing_blocks_and_a_missing_end_are_checkpoint_errors() -> None:
    shapes = part_shapes("sd15", "model.diffusion_model.")
    for gone in ("input_blocks.5.", "output_blocks.11.", "input_blocks."):
        with torch.device("meta"), pytest.raises(CheckpointError):
            UNet.from_shapes({k: s for k, s in shapes.items() if not k.startswith(gone)}, heads_rule=eight_heads)


def test_half_precision_attention_does_not_overflow() -> None:
    # Queries and keys as large as SD 2.1 makes them: their plain products pass fp16's 65504.
    q, k, v = (torch.randn(1, 2, 48, 64) * scale for scale in (60.0, 60.0, 1.0))
    assert (q @ k.transpose(-1, -2)).abs().max() > 65504
    half = F.scaled_dot_product_attention(q.half(), k.half(), v.half())
    assert torch.isfinite(half).all()
    torch.testing.assert_close(half.float(), F.scaled_dot_product_attention(q, k, v), rtol=0.02, atol=0.05)


def test_timestep_embedding_is_cosines_then_sines() -> None:
    embedding = timestep_embedding(torch.tensor([0, 1, 999]), 8)
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(embedding[1], torch.cat([frequencies.cos(), frequencies.sin()]))
    angles = 999 * frequencies.double()
    torch.testing.assert_close(embedding[2].double(), torch.cat([angles.cos(), angles.sin()]), rtol=0, atol=2e-4)


def test_a_missing_vector_is_said() -> None:
    unet = converted(oracle("sdxl").state_dict(), heads_of_64)
    inputs = Inputs("sdxl")
    with pytest.raises(ValueError, match="vector"):
        unet(inputs.x, inputs.timesteps, inputs.context)
