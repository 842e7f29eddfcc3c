"""The layers of a model that an adapter can be put on, and what LoRA files call them."""

from __future__ import annotations

import re
from dataclasses import replace

from loraloom.formats.adapter_file import AdapterTarget
from loraloom.models.names import OPEN_CLIP_LAYER, QKV, Shapes, layer_names, unet_layers

__all__ = ["clip_targets", "open_clip_targets", "other_text_targets", "other_unet_targets", "unet_targets"]

_LAYER_AXES = (2, 4)
"""Of the weight of a layer that can have an adapter: linear, and a convolution over images."""

_NEVER_ADAPTED = re.compile(r"(time_embed|label_emb|out|input_blocks\.0)\..*|.*norm\d*|.*(in|out)_layers\.0")


def unet_targets(shapes: Shapes, *, prefix: str = "model.diffusion_model.", sai_names: bool) -> list[AdapterTarget]:
    """Every layer of the U-Net that an adapter can be put on.

    ``sai_names``: kohya names an SDXL layer after the checkpoint's module, one of SD1 or SD2 after the diffusers
    module; the other name is an alias. Block numbers are kohya's (25 of SD1 and SD2, 23 of SDXL).
    """
    diffusers = unet_layers(shapes)
    inputs = len({layer.split(".")[1] for layer in diffusers if layer.startswith("input_blocks.")})
    targets = []
    for module, theirs in diffusers.items():
        shape = _weight_shape(shapes, module)
        if _NEVER_ADAPTED.fullmatch(module) or len(shape) not in _LAYER_AXES:
            continue
        block = _sai_block(module, inputs) if sai_names else _block(module, inputs)
        target = _unet_target(module, theirs, shape, prefix, sai_names)
        targets.append(replace(target, block=block, extended=".attentions." not in theirs))
    return targets


def other_unet_targets(
    shapes: Shapes, *, prefix: str = "model.diffusion_model.", sai_names: bool
) -> list[AdapterTarget]:
    """The layers of the U-Net that are never trained here, but that files of other trainers may change.

    These are the first and last convolution, the embeddings of time and size, and the normalizations.
    """
    targets = []
    for module, theirs in unet_layers(shapes).items():
        shape = _weight_shape(shapes, module)
        if not _NEVER_ADAPTED.fullmatch(module) or len(shape) not in (1, *_LAYER_AXES):
            continue
        targets.append(_unet_target(module, theirs, shape, prefix, sai_names))
    return targets


def _unet_target(module: str, theirs: str, shape: tuple[int, ...], prefix: str, sai_names: bool) -> AdapterTarget:
    """A layer of the U-Net that belongs to no block; ``theirs``: its module in diffusers."""
    names = _kohya("lora_unet", theirs), _kohya("lora_unet", module)
    return AdapterTarget(
        part="unet",
        module=module,
        name=names[sai_names],
        aliases=(names[not sai_names],),
        diffusers_name=theirs,
        tensor=f"{prefix}{module}.weight",
        rows=None,
        shape=shape,
        kind="norm" if len(shape) == 1 else _kind(shape),
        block=0,
        extended=True,
    )


def other_text_targets(shapes: Shapes, *, part: str, prefix: str, kohya: str) -> list[AdapterTarget]:
    """The normalizations of a text encoder, CLIP or OpenCLIP, which files of other trainers may change."""
    pattern = re.compile(
        r"encoder\.layers\.\d+\.layer_norm[12]|transformer\.resblocks\.\d+\.ln_[12]|final_layer_norm|ln_final", re.ASCII
    )
    targets = []
    for module in (layer for layer in layer_names(shapes) if pattern.fullmatch(layer)):
        theirs = module.replace("transformer.resblocks.", "encoder.layers.").replace("ln_final", "final_layer_norm")
        theirs = re.sub(r"\.ln_([12])$", r".layer_norm\1", theirs)
        shape = _weight_shape(shapes, module)
        if len(shape) == 1:
            target = _encoder_target(part, kohya, module, theirs, f"{prefix}{module}.weight", shape, kind="norm")
            targets.append(target)
    return targets


def _text_aliases(kohya: str, theirs: str) -> tuple[str, ...]:
    """Other spellings of a text encoder's layer: trainers that derive names from transformers 5 leave out text_model,
    and diffusers' conversion to kohya's names writes lora_te1 where a model has one encoder only."""
    prefixes = (kohya, "lora_te1") if kohya == "lora_te" else (kohya,)
    paths = (f"text_model.{theirs}", theirs)
    names = [_kohya(prefix, path) for prefix in prefixes for path in paths]
    return tuple(names[1:])


def _kohya(prefix: str, module: str) -> str:
    return f"{prefix}_{module.replace('.', '_')}"


def _weight_shape(shapes: Shapes, module: str) -> tuple[int, ...]:
    """Shape of a layer's weight; () where the file has none, though it has the layer's bias.

    What a damaged file lacks is not a target; the damage is reported where the model is loaded.
    """
    return tuple(shapes.get(f"{module}.weight", ()))


def _kind(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return "linear"
    return "conv1x1" if shape[2:] == (1, 1) else "conv3x3"


def _block(module: str, inputs: int) -> int:
    """Input blocks, one middle block, output blocks (SD1 and SD2 have 12, 1 and 12)."""
    section, number = module.split(".")[:2]
    return {"input_blocks": int(number), "middle_block": inputs}.get(section, inputs + 1 + int(number))


def _sai_block(module: str, inputs: int) -> int:
    """Embeddings, input blocks, three middle blocks, output blocks, end (SDXL has 1, 9, 3, 9 and 1)."""
    section, number = module.split(".")[:2]
    return {"input_blocks": 1, "middle_block": 1 + inputs}.get(section, 4 + inputs) + int(number)


def clip_targets(shapes: Shapes, *, part: str, prefix: str, kohya: str) -> list[AdapterTarget]:
    """The six linear layers of each layer of a CLIP text encoder.

    ``part`` and ``prefix`` say where the encoder is (``cond_stage_model.transformer.text_model.``), ``kohya`` how
    LoRA files call it (``lora_te``, ``lora_te1``).
    """
    pattern = re.compile(r"encoder\.layers\.(\d+)\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])", re.ASCII)
    modules = [layer for layer in layer_names(shapes) if pattern.fullmatch(layer)]
    return [
        _encoder_target(part, kohya, module, module, f"{prefix}{module}.weight", shape)
        for module in modules
        if len(shape := _weight_shape(shapes, module)) == 2
    ]


def open_clip_targets(
    shapes: Shapes, *, part: str, prefix: str, kohya: str, layers: int | None = None
) -> list[AdapterTarget]:
    """As clip_targets, for OpenCLIP, whose q, k and v are rows of one tensor; only the first ``layers`` if given."""
    targets = []
    numbers = {int(m[1]) for key in shapes if (m := re.match(r"transformer\.resblocks\.(\d+)\.", key, re.ASCII))}
    for number in sorted(numbers)[:layers]:
        start, theirs = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        fused = f"{start}.attn.in_proj_weight"
        if len(shapes.get(fused, ())) == 2:
            size, inputs = shapes[fused][0] // 3, shapes[fused][1]
            for index, name in enumerate(QKV):
                rows = (index * size, (index + 1) * size)
                module, their_name = f"{start}.attn.{name}", f"{theirs}.self_attn.{name}_proj"
                tensor = f"{prefix}{fused}"
                targets.append(_encoder_target(part, kohya, module, their_name, tensor, (size, inputs), rows))
        for layer in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            module, their_name = f"{start}.{layer}", f"{theirs}.{OPEN_CLIP_LAYER[layer]}"
            shape = _weight_shape(shapes, module)
            if len(shape) == 2:
                targets.append(_encoder_target(part, kohya, module, their_name, f"{prefix}{module}.weight", shape))
    return targets


def _encoder_target(
    part: str,
    kohya: str,
    module: str,
    theirs: str,
    tensor: str,
    shape: tuple[int, ...],
    rows: tuple[int, int] | None = None,
    kind: str = "linear",
) -> AdapterTarget:
    return AdapterTarget(
        part=part,
        module=module,
        name=_kohya(kohya, f"text_model.{theirs}"),
        aliases=_text_aliases(kohya, theirs),
        diffusers_name=f"text_model.{theirs}",
        tensor=tensor,
        rows=rows,
        shape=shape,
        kind=kind,
        block=int(theirs.split(".")[2]) if theirs.startswith("encoder.") else 0,
    )
