"""Names and shapes of checkpoints of any size, in the layout of the real files, and toys of random weights.

The full-size layouts come out of the same functions as the toys (a test compares them with the real files, key by
key), so what works for a toy meets the names and the structure of a real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.models.tokenizer import VOCABULARY_SIZE
from loraloom.randomness import normal

__all__ = [
    "FULL_VAE",
    "UNetSizes",
    "VaeSizes",
    "clip_layout",
    "named_shapes",
    "noise_schedule_layout",
    "open_clip_layout",
    "random_tensor",
    "random_tensors",
    "unet_layout",
    "vae_layout",
]

Layout = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of a U-Net. ``depths`` are transformer blocks per level (0: no attention there)."""

    channels: int
    multipliers: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    linear_projections: bool = False
    vector: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    res_blocks: int = 2


@dataclass(frozen=True)
class VaeSizes:
    """Sizes of a VAE."""

    channels: int
    multipliers: tuple[int, ...]
    latent_channels: int = 4
    res_blocks: int = 2


FULL_VAE = VaeSizes(128, (1, 2, 4, 4))
"""Of every family's real files."""


def named_shapes(layouts: Mapping[str, Layout]) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of several layouts, each under its prefix."""
    return {prefix + name: shape for prefix, layout in layouts.items() for name, shape in layout}


def _weight_and_bias(name: str, *shape: int) -> Layout:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _under(prefix: str, layout: Layout) -> Layout:
    return ((prefix + name, shape) for name, shape in layout)


# ------------------------------------------------------------------------------------------------ U-Net


def unet_layout(sizes: UNetSizes) -> Layout:
    """Every tensor of the U-Net, named as after ``model.diffusion_model.``."""
    wide = 4 * sizes.channels
    yield from _two_layers("time_embed", sizes.channels, wide)
    if sizes.vector is not None:
        yield from _two_layers("label_emb.0", sizes.vector, wide)

    # The way up joins what the way down put aside, the last first: its widths decide what each block there reads.
    widths = [multiplier * sizes.channels for multiplier in sizes.multipliers]
    skips = [sizes.channels]
    yield from _weight_and_bias("input_blocks.0.0", sizes.channels, sizes.in_channels, 3, 3)
    number, current = 1, sizes.channels

    for level, width in enumerate(widths):
        for _ in range(sizes.res_blocks):
            yield from _res_and_attention(f"input_blocks.{number}", current, width, sizes.depths[level], sizes)
            current = width
            skips.append(current)
            number += 1
        if level + 1 < len(widths):
            yield from _weight_and_bias(f"input_blocks.{number}.0.op", current, current, 3, 3)
            skips.append(current)
            number += 1

    yield from _res_block("middle_block.0", current, current, wide)
    yield from _transformer("middle_block.1", current, sizes.middle_depth, sizes)
    yield from _res_block("middle_block.2", current, current, wide)

    number = 0
    for level, width in reversed(list(enumerate(widths))):
        for position in range(sizes.res_blocks + 1):
            depth, name = sizes.depths[level], f"output_blocks.{number}"
            yield from _res_and_attention(name, current + skips.pop(), width, depth, sizes)
            current = width
            if level > 0 and position == sizes.res_blocks:
                yield from _weight_and_bias(f"{name}.{2 if depth else 1}.conv", width, width, 3, 3)
            number += 1

    yield from _weight_and_bias("out.0", current)
    yield from _weight_and_bias("out.2", sizes.out_channels, current, 3, 3)


def _two_layers(name: str, inputs: int, outputs: int) -> Layout:
    yield from _weight_and_bias(f"{name}.0", outputs, inputs)
    yield from _weight_and_bias(f"{name}.2", outputs, outputs)


def _res_and_attention(name: str, inputs: int, outputs: int, depth: int, sizes: UNetSizes) -> Layout:
    yield from _res_block(f"{name}.0", inputs, outputs, 4 * sizes.channels)
    if depth:
        yield from _transformer(f"{name}.1", outputs, depth, sizes)


def _res_block(name: str, inputs: int, outputs: int, embedding: int) -> Layout:
    yield from _weight_and_bias(f"{name}.in_layers.0", inputs)
    yield from _weight_and_bias(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    yield from _weight_and_bias(f"{name}.emb_layers.1", outputs, embedding)
    yield from _weight_and_bias(f"{name}.out_layers.0", outputs)
    yield from _weight_and_bias(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _weight_and_bias(f"{name}.skip_connection", outputs, inputs, 1, 1)


def _transformer(name: str, width: int, depth: int, sizes: UNetSizes) -> Layout:
    square = (width, width) if sizes.linear_projections else (width, width, 1, 1)
    yield from _weight_and_bias(f"{name}.norm", width)
    yield from _weight_and_bias(f"{name}.proj_in", *square)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        yield from _attention(f"{block}.attn1", width, width)
        yield from _weight_and_bias(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from _weight_and_bias(f"{block}.ff.net.2", width, 4 * width)
        yield from _attention(f"{block}.attn2", width, sizes.context)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _weight_and_bias(f"{block}.{norm}", width)
    yield from _weight_and_bias(f"{name}.proj_out", *square)


def _attention(name: str, width: int, context: int) -> Layout:
    yield f"{name}.to_q.weight", (width, width)
    yield f"{name}.to_k.weight", (width, context)
    yield f"{name}.to_v.weight", (width, context)
    yield from _weight_and_bias(f"{name}.to_out.0", width, width)


# ------------------------------------------------------------------------------------------------ VAE


def vae_layout(sizes: VaeSizes) -> Layout:
    """Every tensor of the VAE, named as after ``first_stage_model.``."""
    widths = [multiplier * sizes.channels for multiplier in sizes.multipliers]
    latent = sizes.latent_channels
    yield from _under("encoder.", _vae_encoder(sizes, widths))
    yield from _under("decoder.", _vae_decoder(sizes, widths))
    yield from _weight_and_bias("quant_conv", 2 * latent, 2 * latent, 1, 1)
    yield from _weight_and_bias("post_quant_conv", latent, latent, 1, 1)


def _vae_encoder(sizes: VaeSizes, widths: list[int]) -> Layout:
    current = sizes.channels
    yield from _weight_and_bias("conv_in", current, 3, 3, 3)
    for level, width in enumerate(widths):
        for block in range(sizes.res_blocks):
            yield from _vae_block(f"down.{level}.block.{block}", current, width)
            current = width
        if level + 1 < len(widths):
            yield from _weight_and_bias(f"down.{level}.downsample.conv", current, current, 3, 3)
    yield from _vae_middle(current)
    yield from _weight_and_bias("norm_out", current)
    yield from _weight_and_bias("conv_out", 2 * sizes.latent_channels, current, 3, 3)


def _vae_decoder(sizes: VaeSizes, widths: list[int]) -> Layout:
    """Levels are numbered from the finest but run from the coarsest; files list them by number."""
    coarsest = widths[-1]
    yield from _weight_and_bias("conv_in", coarsest, sizes.latent_channels, 3, 3)
    yield from _vae_middle(coarsest)
    for level, width in enumerate(widths):
        current = widths[min(level + 1, len(widths) - 1)]
        for block in range(sizes.res_blocks + 1):
            yield from _vae_block(f"up.{level}.block.{block}", current, width)
            current = width
        if level > 0:
            yield from _weight_and_bias(f"up.{level}.upsample.conv", current, current, 3, 3)
    yield from _weight_and_bias("norm_out", widths[0])
    yield from _weight_and_bias("conv_out", 3, widths[0], 3, 3)


def _vae_middle(width: int) -> Layout:
    yield from _vae_block("mid.block_1", width, width)
    yield from _weight_and_bias("mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        yield from _weight_and_bias(f"mid.attn_1.{name}", width, width, 1, 1)
    yield from _vae_block("mid.block_2", width, width)


def _vae_block(name: str, inputs: int, outputs: int) -> Layout:
    yield from _weight_and_bias(f"{name}.norm1", inputs)
    yield from _weight_and_bias(f"{name}.conv1", outputs, inputs, 3, 3)
    yield from _weight_and_bias(f"{name}.norm2", outputs)
    yield from _weight_and_bias(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _weight_and_bias(f"{name}.nin_shortcut", outputs, inputs, 1, 1)


# ------------------------------------------------------------------------------------------------ text encoders


def clip_layout(width: int, layers: int) -> Layout:
    """Every tensor of CLIP's text model, named as after ``text_model.``."""
    yield "embeddings.position_ids", (1, 77)
    yield "embeddings.token_embedding.weight", (VOCABULARY_SIZE, width)
    yield "embeddings.position_embedding.weight", (77, width)
    for index in range(layers):
        layer = f"encoder.layers.{index}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _weight_and_bias(f"{layer}.self_attn.{name}", width, width)
        yield from _weight_and_bias(f"{layer}.layer_norm1", width)
        yield from _weight_and_bias(f"{layer}.mlp.fc1", 4 * width, width)
        yield from _weight_and_bias(f"{layer}.mlp.fc2", width, 4 * width)
        yield from _weight_and_bias(f"{layer}.layer_norm2", width)
    yield from _weight_and_bias("final_layer_norm", width)


def open_clip_layout(width: int, layers: int) -> Layout:
    """Every tensor of OpenCLIP's text model, named as after ``model.``."""
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (VOCABULARY_SIZE, width)
    for index in range(layers):
        layer = f"transformer.resblocks.{index}"
        yield from _weight_and_bias(f"{layer}.ln_1", width)
        yield f"{layer}.attn.in_proj_weight", (3 * width, width)
        yield f"{layer}.attn.in_proj_bias", (3 * width,)
        yield from _weight_and_bias(f"{layer}.attn.out_proj", width, width)
        yield from _weight_and_bias(f"{layer}.ln_2", width)
        yield from _weight_and_bias(f"{layer}.mlp.c_fc", 4 * width, width)
        yield from _weight_and_bias(f"{layer}.mlp.c_proj", width, 4 * width)
    yield from _weight_and_bias("ln_final", width)


# ------------------------------------------------------------------------------------------------ values


def noise_schedule_layout() -> dict[str, Tensor]:
    """The twelve tables of the noise schedule that SD 1 and SD 2 files carry (Ho et al., arXiv:2006.11239)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, len(NoiseSchedule.scaled_linear()), dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    variance = betas * (1 - previous) / (1 - alphas)
    tables = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - alphas),
    }
    return {name: table.float() for name, table in tables.items()}


def random_tensors(layouts: Mapping[str, Layout], *key: int | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights of several layouts, each under its prefix: a function of ``key`` and the names alone.

    Every layer keeps the scale of its input, so that any pass gives finite values that are not constant.
    """
    return {name: random_tensor(name, shape, key, dtype) for name, shape in named_shapes(layouts).items()}


def random_tensor(name: str, shape: tuple[int, ...], key: tuple[int | str, ...], dtype: torch.dtype) -> Tensor:
    """One tensor of :func:`random_tensors`: its scale follows from what its name says it is."""
    if name.endswith("position_ids"):
        return torch.arange(77).reshape(shape)
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100.0), dtype=dtype)
    values = normal(shape, *key, name)
    if len(shape) == 1:
        is_norm_scale = name.endswith(".weight")
        values = 1 + 0.1 * values if is_norm_scale else 0.1 * values
    elif "embedding" in name:
        values = 0.5 * values
    else:
        values = values / math.sqrt(math.prod(shape[1:]))
    return values.to(dtype)
