"""The JSON files of a Diffusers folder, every size inferred from tensor shapes (under diffusers names)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from loraloom.models.family import SIZE_CHANNELS, Family
from loraloom.models.prediction import PredictionChoice
from loraloom.models.resolution import OwnResolution
from loraloom.models.text_encoders import EncoderSizes
from loraloom.models.tokenizer import BOS, EOS, huggingface_files

__all__ = ["pipeline_files", "text_config", "unet_config", "vae_config"]

Shapes = Mapping[str, tuple[int, ...]]

_DIFFUSERS_VERSION = "0.21.0"
"""The oldest version whose configs look like these."""


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the group of ``pattern`` matches."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def unet_config(shapes: Shapes, family: Family, resolution: OwnResolution) -> dict[str, Any]:
    """diffusers' UNet2DConditionModel."""
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    resnets = _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\.")
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels)]
    depths = [
        _count(shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.") for level in range(levels)
    ]
    middle = _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    width, height = resolution.width, resolution.height
    heads = [family.attention_heads(width) for width in widths]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]

    # What no tensor shows is the same in every Stable Diffusion; everything else is counted in the tensors.
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": _context(shapes),
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": shapes["conv_in.weight"][1],
        "layers_per_block": resnets,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": shapes["conv_out.weight"][0],
        "sample_size": width // 8 if width == height else [height // 8, width // 8],
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [middle],
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "use_linear_projection": len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
    }

    if "add_embedding.linear_1.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_CHANNELS,
            "projection_class_embeddings_input_dim": shapes["add_embedding.linear_1.weight"][1],
        }
    return config


def _context(shapes: Shapes) -> int:
    return shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1]


def vae_config(shapes: Shapes, family: Family, resolution: OwnResolution) -> dict[str, Any]:
    """diffusers' AutoencoderKL."""
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "norm_num_groups": 32,
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "sample_size": max(resolution.width, resolution.height),
        "scaling_factor": family.latent_scale,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(shapes: Shapes, encoder: Literal["clip", "open_clip"]) -> dict[str, Any]:
    """transformers' CLIPTextModel, or CLIPTextModelWithProjection where there is a projection."""
    table = "text_model.embeddings.token_embedding.weight"
    sizes = EncoderSizes(
        vocabulary=shapes[table][0],
        width=shapes[table][1],
        positions=shapes["text_model.embeddings.position_embedding.weight"][0],
        layers=_count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        hidden=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        projection=shapes["text_projection.weight"][0] if "text_projection.weight" in shapes else None,
    )
    return {
        "architectures": ["CLIPTextModel" if sizes.projection is None else "CLIPTextModelWithProjection"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "dropout": 0.0,
        "eos_token_id": EOS,
        "hidden_act": "quick_gelu" if encoder == "clip" else "gelu",
        "hidden_size": sizes.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": sizes.hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": sizes.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": EOS if encoder == "clip" else 0,
        "projection_dim": sizes.projection or sizes.width,
        "vocab_size": sizes.vocabulary,
    }


def pipeline_files(family: Family, signs: PredictionChoice) -> dict[str, str]:
    """``model_index.json``, the scheduler's config and the tokenizers, by their place in the folder."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family.uses_sizes else "StableDiffusionPipeline",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler" if family.uses_sizes else "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family.uses_sizes:
        index |= {"force_zeros_for_empty_prompt": True, "image_encoder": [None, None]}
    else:
        index |= {"image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    files: dict[str, str] = {}
    for part in family.text_parts:
        projected = family.uses_sizes and part is family.text_parts[-1]
        tokenizer = part.part.replace("text_encoder", "tokenizer")
        index[part.part] = ["transformers", "CLIPTextModelWithProjection" if projected else "CLIPTextModel"]
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
        pad = "!" if part.encoder == "open_clip" else "<|endoftext|>"
        files |= {f"{tokenizer}/{name}": text for name, text in huggingface_files(pad).items()}
    scheduler = _scheduler_config(index["scheduler"][1], signs)
    files["scheduler/scheduler_config.json"] = json.dumps(scheduler, indent=2) + "\n"
    files["model_index.json"] = json.dumps(dict(sorted(index.items())), indent=2) + "\n"
    return files


def _scheduler_config(name: str, signs: PredictionChoice) -> dict[str, Any]:
    config: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": _DIFFUSERS_VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if signs.prediction == "v" else "epsilon",
        "rescale_betas_zero_snr": signs.zero_terminal_snr,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if signs.zero_terminal_snr else "leading",
    }
    if name == "DDIMScheduler":
        config |= {"clip_sample": False, "set_alpha_to_one": False}
    return config
