"""What a file of tensors is when it is not a checkpoint of a known family, so that an error can say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loraloom.formats.adapter_kinds import layouts
from loraloom.formats.entries import TensorInfo
from loraloom.formats.lora_keys import lora_keys

__all__ = ["what_it_is"]

Infos = Mapping[str, TensorInfo]

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_TEXT = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.", "text_model.")


def what_it_is(infos: Infos) -> str:
    """One sentence about the file, for people."""
    if not infos:
        return "holds no tensors"
    return next((sentence for matches, sentence in _KINDS if matches(infos)), _unknown(infos))


def _unknown(infos: Infos) -> str:
    return f"is not a known kind of model ({len(infos)} tensors, the first is {next(iter(infos))!r})"


def _any_contains(*pieces: str) -> Callable[[Infos], bool]:
    return lambda infos: any(piece in name for name in infos for piece in pieces)


def _any_starts(*starts: str) -> Callable[[Infos], bool]:
    bare = tuple(starts)
    return lambda infos: any(name.startswith(bare) for name in infos)


def _after_prefix(*starts: str) -> Callable[[Infos], bool]:
    """Names that begin so, with or without the prefix that single files put before the U-Net or transformer."""
    prefixes = ("", _UNET, "transformer.", "model.")
    return _any_starts(*(prefix + start for prefix in prefixes for start in starts))


def _all_start(*starts: str) -> Callable[[Infos], bool]:
    return lambda infos: all(name.startswith(starts) for name in infos)


def _is_numbered_list(infos: Infos) -> bool:
    return len(infos) > 1 and all(name.isdecimal() for name in infos)


def _lacks_text_encoder(infos: Infos) -> bool:
    return any(n.startswith(_UNET) for n in infos) and not any(n.startswith(_TEXT) for n in infos)


def _is_refiner(infos: Infos) -> bool:
    has_first = any(name.startswith("conditioner.embedders.0.model.") for name in infos)
    return has_first and not any(name.startswith("conditioner.embedders.1.") for name in infos)


_KINDS: tuple[tuple[Callable[[Infos], bool], str], ...] = (
    (lambda infos: lora_keys(infos, {}) is not None, "is a LoRA, not a checkpoint"),
    (
        lambda infos: any(mark in name for layout in layouts().values() for mark in layout.marks for name in infos),
        "has tensors like those of a LoRA under names of no program that is known here",
    ),
    (_is_numbered_list, "is a list of tensors without names in no order that is known here"),
    (_any_contains("string_to_param", "emb_params"), "is a textual inversion embedding, not a checkpoint"),
    (lambda infos: set(infos) <= {"clip_l", "clip_g"}, "is a textual inversion embedding, not a checkpoint"),
    (_any_starts("control_model.", "controlnet_", "zero_convs."), "is a ControlNet, not a checkpoint"),
    (_any_contains("controlnet_cond_embedding"), "is a ControlNet, not a checkpoint"),
    (_any_contains("ip_adapter", "image_proj."), "is an IP-Adapter, not a checkpoint"),
    (_any_contains("motion_modules."), "is a motion module (AnimateDiff), not a checkpoint"),
    (_is_refiner, "is the SDXL refiner, which is not supported"),
    (_after_prefix("joint_blocks."), "is a Stable Diffusion 3 model, which is not supported"),
    (
        _after_prefix("double_blocks.", "single_blocks.", "single_transformer_blocks."),
        "is a Flux model, which is not supported",
    ),
    (_after_prefix("double_layers.", "single_layers."), "is an AuraFlow model, which is not supported"),
    (_after_prefix("double_stream_blocks."), "is a HiDream model, which is not supported"),
    (_after_prefix("noise_refiner.", "context_refiner."), "is a Lumina model, which is not supported"),
    (_after_prefix("clip_txt_pooled_mapper.", "clf.1."), "is a Stable Cascade model, which is not supported"),
    (_after_prefix("adaln_single.", "t_block."), "is a PixArt model, which is not supported"),
    (_after_prefix("transformer_blocks.", "blocks.0."), "is a diffusion transformer of a kind that is not supported"),
    (_all_start(_VAE), "is a VAE only, not a whole checkpoint"),
    (
        _all_start("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss."),
        "is a VAE only, not a whole checkpoint",
    ),
    (_all_start(*_TEXT), "is a text encoder only, not a whole checkpoint"),
    (
        _all_start(
            "transformer.resblocks.",
            "token_embedding.",
            "positional_embedding",
            "ln_final.",
            "text_projection",
            "logit_scale",
            "visual.",
        ),
        "is a CLIP model, not a checkpoint",
    ),
    (_lacks_text_encoder, "holds a U-Net but no text encoder that fits it"),
    (_any_starts("down_blocks.", "input_blocks."), "is a U-Net only, not a whole checkpoint"),
    (_any_starts("model.0.", "body.0.", "conv_first."), "is an image upscaler, not a checkpoint"),
    (
        lambda infos: any(n.startswith(_TEXT) for n in infos) and not any(n.startswith(_UNET) for n in infos),
        "holds text encoders but no U-Net",
    ),
)
