"""Names: what one tensor is called in a checkpoint file and in a Diffusers folder.

All tables work on the structure found in the names themselves (which block has a transformer, where the resolution
changes), so models of other widths and depths translate as the full ones do. Keys are relative to their part: the
U-Net's after ``model.diffusion_model.``, the VAE's after ``first_stage_model.``, CLIP's after ``…text_model.`` and
OpenCLIP's after ``…model.`` (the modules in this package carry the same names).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "OPEN_CLIP_LAYER",
    "QKV",
    "Pair",
    "PartKind",
    "Shapes",
    "checkpoint_shape",
    "checkpoint_tensor",
    "is_extra",
    "layer_names",
    "pairs_from_checkpoint",
    "pairs_from_diffusers",
    "unet_layers",
]

PartKind = Literal["unet", "vae", "clip", "open_clip"]
Shapes = Mapping[str, tuple[int, ...]]

_EXTRAS = re.compile(
    r"betas|alphas_cumprod(_prev)?|(sqrt|log)_.*|posterior_.*|logvar|lvlb_weights|scale_factor|global_step"
    r"|model_ema\..*|denoiser\..*|v_pred|ztsnr|edm_.*|first_stage_model\.loss\..*"
    r"|(cond_stage_model|conditioner)\..*\.(logit_scale|attn_mask|position_ids)"
)


def is_extra(key: str) -> bool:
    """Whether a checkpoint key belongs to no module: schedules, averaged copies, markers, training leftovers."""
    return _EXTRAS.fullmatch(key) is not None


# ------------------------------------------------------------------------- checkpoint <-> Diffusers


@dataclass(frozen=True)
class Pair:
    """One tensor of a Diffusers folder and where it is in the checkpoint, both relative to their part."""

    checkpoint: str
    diffusers: str
    change: Literal["same", "pointwise", "transposed", "rows"] = "same"
    """``pointwise``: a 1x1 convolution in the checkpoint, linear in diffusers. ``transposed``: a matrix the other way
    round. ``rows``: the ``index``-th of ``count`` equal row blocks of the checkpoint's tensor."""
    index: int = 0
    count: int = 1

    def diffusers_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the Diffusers folder of a checkpoint tensor of this shape."""
        match self.change:
            case "pointwise":
                return shape[:2]
            case "transposed":
                return (shape[1], shape[0])
            case "rows":
                return (shape[0] // self.count, *shape[1:])
        return shape

    def to_diffusers(self, tensor: Tensor) -> Tensor:
        """The Diffusers tensor, in its own shape, from the checkpoint's: a view where possible, contiguous always."""
        match self.change:
            case "pointwise":
                return tensor.flatten(1)
            case "transposed":
                return tensor.T.contiguous()
            case "rows":
                size = tensor.shape[0] // self.count
                return tensor[self.index * size : (self.index + 1) * size]
        return tensor


def checkpoint_shape(pairs: Sequence[Pair], shapes: Shapes) -> tuple[int, ...]:
    """Shape of a checkpoint tensor from the Diffusers shapes; ``pairs`` are all the pairs of that tensor."""
    shape = shapes[pairs[0].diffusers]
    match pairs[0].change:
        case "pointwise":
            return (*shape, 1, 1)
        case "transposed":
            return (shape[1], shape[0])
        case "rows":
            return (shape[0] * len(pairs), *shape[1:])
    return shape


def checkpoint_tensor(pairs: Sequence[Pair], load: Callable[[str], Tensor]) -> Tensor:
    """A checkpoint tensor made from the Diffusers tensors that ``load`` gives by name; ``pairs`` as above."""
    match pairs[0].change:
        case "pointwise":
            return load(pairs[0].diffusers)[:, :, None, None]
        case "transposed":
            return load(pairs[0].diffusers).T.contiguous()
        case "rows":
            return torch.cat([load(pair.diffusers) for pair in sorted(pairs, key=lambda pair: pair.index)])
    return load(pairs[0].diffusers)


def pairs_from_checkpoint(kind: PartKind, shapes: Shapes) -> list[Pair]:
    """The pairs for a part as a checkpoint has it. Keys that diffusers has no tensor for are left out."""
    match kind:
        case "unet":
            layers = unet_layers(shapes)
            return [Pair(key, f"{layers[layer]}.{end}") for key, layer, end in _split(shapes) if layer in layers]

        case "vae":
            return _vae_pairs(shapes)
        # Newer transformers do not keep position_ids, which count from 0 to 76 in every file.
        case "clip":
            return [Pair(key, f"text_model.{key}") for key in shapes if not key.endswith("position_ids")]
        case "open_clip":
            return [pair for key in shapes for pair in _open_clip_pairs(key)]


def pairs_from_diffusers(kind: PartKind, shapes: Shapes) -> list[Pair]:
    """The pairs for a part as a Diffusers folder has it. Keys that a checkpoint has no tensor for are left out.

    Names of older diffusers (the VAE's ``query``, ``proj_attn``) and of transformers 5 (no ``text_model.`` in front)
    are understood as well, and so are a checkpoint's own names of the VAE. The VAE's attention becomes 1x1
    convolutions, as in every original file.
    """
    match kind:
        case "unet":
            layers = _unet_layers_of_diffusers(shapes)
            return [Pair(f"{layers[layer]}.{end}", key) for key, layer, end in _split(shapes) if layer in layers]

        case "vae":
            return _vae_pairs_of_diffusers(shapes)
        case "clip":
            return [Pair(key.removeprefix("text_model."), key) for key in shapes if _is_clip_tensor(key)]
        # OpenCLIP keeps query, key and value in one tensor, diffusers in three.
        case "open_clip":
            return [pair for key in shapes if (pair := _open_clip_pair_of_diffusers(key)) is not None]


def _is_clip_tensor(key: str) -> bool:
    return not key.endswith("position_ids") and not key.startswith("text_projection.")


def _split(keys: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Each key with its layer and the tensor's name in the layer."""
    return ((key, *key.rsplit(".", 1)) for key in keys if "." in key)  # type: ignore[misc]


# ----------------------------------------------------------------------------------------- U-Net

_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_BACK = {theirs: ours for ours, theirs in _RESNET.items()}
_UNET_BLOCK = re.compile(r"((?:input_blocks|output_blocks)\.\d+|middle_block)\.(\d+)\.(.+)", re.ASCII)
_UNET_BLOCK_OF_DIFFUSERS = re.compile(
    r"((?:down|up)_blocks\.\d+|mid_block)\.((?:resnets|attentions|downsamplers|upsamplers)\.\d+)\.(.+)", re.ASCII
)
_SECTIONS = {"input_blocks": "down_blocks", "output_blocks": "up_blocks"}


def layer_names(keys: Iterable[str]) -> list[str]:
    """The layers that tensors belong to, numbers in numeric order."""
    return sorted({layer for _, layer, _ in _split(keys)}, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in name.split(".")]


def unet_layers(keys: Iterable[str]) -> dict[str, str]:
    """Checkpoint layer -> diffusers layer, for every layer of the U-Net."""
    layers = layer_names(keys)
    modules = _unet_modules(layers)
    found = {}
    for layer in layers:
        match = _UNET_BLOCK.fullmatch(layer)
        if layer in _UNET_ENDS:
            found[layer] = _UNET_ENDS[layer]
        elif match is not None:
            module, rest = f"{match[1]}.{match[2]}", match[3]
            found[layer] = f"{modules[module]}.{_RESNET.get(rest, 'conv' if rest == 'op' else rest)}"
    return found


def _unet_modules(layers: Iterable[str]) -> dict[str, str]:
    """``input_blocks.4.1`` -> ``down_blocks.1.attentions.0``: a level ends where the resolution changes."""
    modules: dict[str, str] = {}
    kinds = {
        f"{match[1]}.{match[2]}": _module_kind(match[3]) for layer in layers if (match := _UNET_BLOCK.fullmatch(layer))
    }
    levels = {"input_blocks": 0, "output_blocks": 0}
    counts: dict[str, int] = {}
    for module, kind in kinds.items():
        section = module.split(".")[0]
        level = f"{_SECTIONS[section]}.{levels[section]}" if section in levels else "mid_block"
        number = counts.get(f"{level}.{kind}", 0)
        counts[f"{level}.{kind}"] = number + 1
        modules[module] = f"{level}.{kind}.{number}"
        if kind in ("downsamplers", "upsamplers"):
            levels[section] += 1
    return modules


def _module_kind(layer_inside: str) -> str:
    if layer_inside in _RESNET:
        return "resnets"
    return {"op": "downsamplers", "conv": "upsamplers"}.get(layer_inside, "attentions")


def _unet_layers_of_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """Diffusers layer -> checkpoint layer, for every layer of the U-Net."""
    layers = layer_names(keys)
    modules = _unet_modules_of_diffusers(layers)
    ends = {theirs: ours for ours, theirs in _UNET_ENDS.items()}
    found = {}
    for layer in layers:
        match = _UNET_BLOCK_OF_DIFFUSERS.fullmatch(layer)
        if layer in ends:
            found[layer] = ends[layer]
        elif match is not None:
            rest = "op" if match[2].startswith("downsamplers") else _RESNET_BACK.get(match[3], match[3])
            found[layer] = f"{modules[f'{match[1]}.{match[2]}']}.{rest}"
    return found


def _unet_modules_of_diffusers(layers: Iterable[str]) -> dict[str, str]:
    """``down_blocks.1.attentions.0`` -> ``input_blocks.4.1``: blocks are counted through all levels."""
    inside: dict[str, list[str]] = {}
    for layer in layers:
        if match := _UNET_BLOCK_OF_DIFFUSERS.fullmatch(layer):
            children = inside.setdefault(match[1], [])
            if match[2] not in children:
                children.append(match[2])
    modules: dict[str, str] = {}
    first = {"down_blocks": 1, "up_blocks": 0, "mid_block": 0}
    for level, children in inside.items():
        section = level.split(".")[0]
        resnets = sum(child.startswith("resnets") for child in children)
        transformers = any(child.startswith("attentions") for child in children)
        for child in children:
            kind, number = child.split(".")[0], int(child.split(".")[1])
            modules[f"{level}.{child}"] = _place(section, first[section], kind, number, resnets, transformers)
        first[section] += resnets + (section == "down_blocks" and "downsamplers.0" in children)
    return modules


def _place(section: str, first: int, kind: str, number: int, resnets: int, transformers: bool) -> str:
    """The place in the checkpoint of one module of a diffusers block whose first numbered block is ``first``."""
    if section == "mid_block":
        return f"middle_block.{2 * number + (kind == 'attentions')}"
    if kind == "downsamplers":
        return f"input_blocks.{first + resnets}.0"
    if kind == "upsamplers":
        return f"output_blocks.{first + resnets - 1}.{1 + transformers}"
    name = "input_blocks" if section == "down_blocks" else "output_blocks"
    return f"{name}.{first + number}.{int(kind == 'attentions')}"


# ------------------------------------------------------------------------------------------- VAE

_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE_ATTENTION_BACK = {
    **{theirs: ours for ours, theirs in _VAE_ATTENTION.items()},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
    # Left by programs that translated names twice, or not all of them.
    **{"to_to_q": "q", "to_to_k": "k", "to_to_v": "v", "to_out": "proj_out", "to_to_out.0": "proj_out"},
}
_VAE_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(?:block\.(\d+)\.(.+)|(down|up)sample\.conv)", re.ASCII)
_VAE_LEVEL_OF_DIFFUSERS = re.compile(
    r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(?:resnets\.(\d+)\.(.+)|(down|up)samplers\.0\.conv)", re.ASCII
)
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(?:block_(\d+)|attn_(\d+))\.(.+)", re.ASCII)
_VAE_MIDDLE_OF_DIFFUSERS = re.compile(
    r"(encoder|decoder)\.mid_block\.(?:resnets\.(\d+)|attentions\.(\d+))\.(.+)", re.ASCII
)


def _vae_pairs(shapes: Shapes) -> list[Pair]:
    levels = _level_count(_VAE_LEVEL, shapes)
    pairs = []
    for key, layer, end in _split(shapes):
        pointwise = ".attn_" in layer and len(shapes[key]) == 4
        pairs.append(Pair(key, f"{_vae_layer(layer, levels)}.{end}", "pointwise" if pointwise else "same"))
    return pairs


def _vae_pairs_of_diffusers(shapes: Shapes) -> list[Pair]:
    levels = _level_count(_VAE_LEVEL_OF_DIFFUSERS, shapes)
    pairs = []
    for key, layer, end in _split(shapes):
        ours = _vae_layer_of_diffusers(layer, levels)
        pointwise = ".attn_" in ours and ours != layer and len(shapes[key]) == 2
        pairs.append(Pair(f"{ours}.{end}", key, "pointwise" if pointwise else "same"))
    return pairs


def _level_count(pattern: re.Pattern[str], keys: Iterable[str]) -> int:
    """Number of resolutions of the decoder, which the two namings count from opposite ends."""
    matches = (pattern.fullmatch(layer) for _, layer, _ in _split(keys))
    return 1 + max((int(match[2]) for match in matches if match and match[1] == "decoder.up"), default=-1)


def _vae_layer(layer: str, levels: int) -> str:
    if match := _VAE_LEVEL.fullmatch(layer):
        section, level, block, rest, resample = match.groups()
        number = int(level) if section == "encoder.down" else levels - 1 - int(level)
        inner = f"{resample}samplers.0.conv" if resample else f"resnets.{block}.{_shortcut(rest)}"
        return f"{section}_blocks.{number}.{inner}"
    if match := _VAE_MIDDLE.fullmatch(layer):
        section, block, attention, rest = match.groups()
        if block:
            return f"{section}.mid_block.resnets.{int(block) - 1}.{_shortcut(rest)}"
        return f"{section}.mid_block.attentions.{int(attention) - 1}.{_VAE_ATTENTION.get(rest, rest)}"
    return re.sub(r"(?<=coder\.)norm_out$", "conv_norm_out", layer)


def _vae_layer_of_diffusers(layer: str, levels: int) -> str:
    if match := _VAE_LEVEL_OF_DIFFUSERS.fullmatch(layer):
        section, level, block, rest, resample = match.groups()
        number = int(level) if section == "encoder.down" else levels - 1 - int(level)
        inner = f"{resample}sample.conv" if resample else f"block.{block}.{_shortcut_back(rest)}"
        return f"{section}.{number}.{inner}"
    if match := _VAE_MIDDLE_OF_DIFFUSERS.fullmatch(layer):
        section, block, attention, rest = match.groups()
        if block:
            return f"{section}.mid.block_{int(block) + 1}.{_shortcut_back(rest)}"
        return f"{section}.mid.attn_{int(attention) + 1}.{_VAE_ATTENTION_BACK.get(rest, rest)}"
    if (match := _VAE_MIDDLE.fullmatch(layer)) and match[3]:  # of an original file, with a projection by another name
        section, _, attention, rest = match.groups()
        return f"{section}.mid.attn_{attention}.{_VAE_ATTENTION_BACK.get(rest, rest)}"
    return re.sub(r"(?<=coder\.)conv_norm_out$", "norm_out", layer)


def _shortcut(layer: str) -> str:
    return "conv_shortcut" if layer == "nin_shortcut" else layer


def _shortcut_back(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


# ---------------------------------------------------------------------------------- text encoders

OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_LAYER_BACK = {theirs: ours for ours, theirs in OPEN_CLIP_LAYER.items()}
_OPEN_CLIP_REST = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPEN_CLIP_REST_BACK = {theirs.removeprefix("text_model."): ours for ours, theirs in _OPEN_CLIP_REST.items()}
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", re.ASCII)
_OPEN_CLIP_BLOCK_OF_DIFFUSERS = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", re.ASCII)
QKV = ("q", "k", "v")


def _open_clip_pairs(key: str) -> list[Pair]:
    if key == "text_projection":
        # OpenCLIP multiplies by the matrix from the right, a linear layer by its transpose.
        return [Pair(key, "text_projection.weight", "transposed")]
    if key in _OPEN_CLIP_REST:
        return [Pair(key, _OPEN_CLIP_REST[key])]
    match = _OPEN_CLIP_BLOCK.fullmatch(key)
    if match is None:
        return []
    number, layer, end = match.groups()
    start = f"text_model.encoder.layers.{number}"
    if layer == "attn.in_proj":
        return [Pair(key, f"{start}.self_attn.{n}_proj.{end}", "rows", i, 3) for i, n in enumerate(QKV)]
    return [Pair(key, f"{start}.{OPEN_CLIP_LAYER[layer]}.{end}")] if layer in OPEN_CLIP_LAYER else []


def _open_clip_pair_of_diffusers(key: str) -> Pair | None:
    name = key.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Pair("text_projection", key, "transposed")
    if name in _OPEN_CLIP_REST_BACK:
        return Pair(_OPEN_CLIP_REST_BACK[name], key)
    match = _OPEN_CLIP_BLOCK_OF_DIFFUSERS.fullmatch(name)
    if match is None:
        return None
    number, layer, end = match.groups()
    start = f"transformer.resblocks.{number}"
    if fused := re.fullmatch(r"self_attn\.([qkv])_proj", layer):
        return Pair(f"{start}.attn.in_proj_{end}", key, "rows", QKV.index(fused[1]), 3)
    return Pair(f"{start}.{_OPEN_CLIP_LAYER_BACK[layer]}.{end}", key) if layer in _OPEN_CLIP_LAYER_BACK else None
