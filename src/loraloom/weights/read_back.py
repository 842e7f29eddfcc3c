"""A LoRA file read again by a program that is not ours: diffusers must change every layer as this program does.

diffusers is given a file as its users give it one, and models of full size without weights. What it then would add to
each layer, its own scale times the factors that it took for the layer, is compared with what is read here.

Run as ``python -m loraloom.weights.read_back FILE...`` it prints one JSON line for each file: importing diffusers takes
seconds and memory that a training process should not spend.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence, parts_to_record
from loraloom.errors import LoraloomError
from loraloom.formats.adapter_file import AdapterFile, read_adapter_file
from loraloom.formats.adapter_kinds import inner_roles, is_pair, title_of
from loraloom.formats.lora_factors import factors_of, product_norm
from loraloom.formats.lora_family import family_name
from loraloom.formats.lora_keys import LoraKeys, lora_keys
from loraloom.formats.tensors import TensorInfo, open_tensors
from loraloom.models.diffusers_configs import text_config, unet_config
from loraloom.models.family import FAMILIES, Family
from loraloom.models.names import PartKind, pairs_from_checkpoint
from loraloom.models.resolution import own_resolution
from loraloom.weights.lora_layers import named_layers

__all__ = ["ReadBackReport", "read_back"]

TOLERANCE = 0.003
"""Relative difference of a layer's change that two programs may have by rounding alpha."""


@dataclass(frozen=True)
class ReadBackReport:
    """``used`` of ``tensors`` were given a layer; ``problem`` is empty where that is all of them.

    ``reader`` is empty where no reader knows the file's kind; ``problem`` then says so.
    """

    path: str
    reader: str
    tensors: int
    used: int
    problem: str

    @property
    def is_broken(self) -> bool:
        """Whether a reader that knows this kind of file could not use all of it."""
        return bool(self.reader and self.problem)


def read_back(path: Path) -> ReadBackReport:
    """Have diffusers load a LoRA file, and compare the change of each layer with the one read here. Needs diffusers.

    The models are without weights; shapes were checked when the file was made.
    """
    file = read_adapter_file(path)
    count = len(open_tensors(path))
    for name, roles in file.layers.items():
        if not is_pair(inner_roles(roles)) or "mid" in roles:
            return ReadBackReport(str(path), "", count, 0, f"diffusers does not read {title_of(roles)} ({name})")
    import diffusers

    reader = f"diffusers {diffusers.__version__}"
    try:
        used, problem = _loaded_by_diffusers(path, file, count)
    except (ValueError, KeyError, RuntimeError, NotImplementedError, TypeError) as error:
        return ReadBackReport(str(path), reader, count, 0, str(error)[:500])
    return ReadBackReport(str(path), reader, count, used, problem)


def _loaded_by_diffusers(path: Path, file: AdapterFile, count: int) -> tuple[int, str]:
    """How many tensors got a layer, and what is wrong, if anything."""
    from diffusers import loaders

    family: Family = FAMILIES.load(family_name(file.layers, file.metadata) or next(iter(FAMILIES)))()
    models = _models(family)
    modules = {f"{part}.{_short(name)}": module for part, model in models.items() for name, module in _leaves(model)}
    mixin = getattr(loaders, f"StableDiffusion{'XL' if family.uses_sizes else ''}LoraLoaderMixin")
    # Other containers than safetensors wrap the tensors, which diffusers does not expect: the names are what counts.
    tensors = open_tensors(path)
    given = str(path) if tensors.kind == "safetensors" else {key: tensors[key] for key in tensors}
    state, alphas, metadata = mixin.lora_state_dict(given, unet_config=models["unet"].config, return_lora_metadata=True)
    keys = lora_keys(state, {})
    names = {} if keys is None else {name: _without_text_model(name) for name in keys.layers}
    homes = {name: there for name, there in names.items() if there in modules}
    used = len(alphas or ()) + sum(len(keys.layers[name]) for name in homes if keys is not None)
    if keys is None or used < count:
        homeless = [] if keys is None else [name for name in names if name not in homes] + list(keys.unknown)
        dropped = "dora_scale" if any("dora_scale" in roles for roles in file.layers.values()) else ""
        first = f", the first is {homeless[0]}" if homeless else f": it leaves out {dropped}" if dropped else ""
        return used, f"diffusers has no layer for {count - used} of {count} tensors{first}"
    taken = {homes[name]: {role: state[key] for role, key in keys.layers[name].items()} for name in homes}
    scales = _scales(mixin, models, _full_size(state, keys, modules, homes), alphas, metadata)
    return used, _difference(file, taken, scales)


def _models(family: Family) -> dict[str, Any]:
    """diffusers' U-Net and transformers' text encoders by part, of full size and without weights."""
    import diffusers
    import transformers

    full = family.full_size()
    infos = {key: TensorInfo(torch.float16, shape) for key, shape in full.items()}

    def config_shapes(kind: PartKind, prefix: str) -> dict[str, tuple[int, ...]]:
        shapes = {key.removeprefix(prefix): shape for key, shape in full.items() if key.startswith(prefix)}
        pairs = pairs_from_checkpoint(kind, shapes)
        return {pair.diffusers: pair.diffusers_shape(shapes[pair.checkpoint]) for pair in pairs}

    size = own_resolution(family, {}, None)
    classes: Any = (diffusers.UNet2DConditionModel, transformers.CLIPTextConfig)
    with torch.device("meta"):
        models: dict[str, Any] = {
            "unet": classes[0].from_config(unet_config(config_shapes("unet", family.unet_prefix), family, size))
        }
        for part in family.text_parts:
            prefix = part.prefix(infos)
            if prefix is not None:
                config = text_config(config_shapes(part.encoder, prefix), part.encoder)
                models[part.part] = getattr(transformers, config["architectures"][0])(classes[1](**config))
    return models


def _leaves(model: Any) -> list[tuple[str, Any]]:
    """The layers that have a weight of two or four dimensions."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.ndim in (2, 4)
    ]


def _short(name: str) -> str:
    """transformers 5 has no level ``text_model`` where its older versions have one."""
    return name.removeprefix("text_model.")


def _without_text_model(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{part}.{_short(rest)}"


def _full_size(
    state: Mapping[str, Tensor], keys: LoraKeys, modules: Mapping[str, Any], homes: Mapping[str, str]
) -> dict[str, Tensor]:
    """diffusers' tensors without values, in the shapes that fit its models: a small model's LoRA loads like any."""
    resized = dict(state)
    for name, there in homes.items():
        out, columns = modules[there].weight.shape[:2]
        for role, key in keys.layers[name].items():
            shape = list(state[key].shape)
            if role in ("down", "up"):
                shape[0 if role == "up" else 1] = out if role == "up" else columns
            elif role == "dora_scale":
                shape = [out if size == max(shape) else size for size in shape]
            else:
                continue
            resized[key] = torch.empty(shape, dtype=state[key].dtype, device="meta")
    return resized


def _scales(
    mixin: Any, models: Mapping[str, Any], state: dict[str, Tensor], alphas: Any, metadata: Any
) -> dict[str, float]:
    """What diffusers multiplies the factors of each layer by, after it has loaded them."""
    for part, model in models.items():
        if not any(key.startswith(f"{part}.") for key in state):
            continue
        told = {"adapter_name": "read_back", "low_cpu_mem_usage": True, "metadata": metadata}
        if part == "unet":
            mixin.load_lora_into_unet(dict(state), network_alphas=alphas, unet=model, **told)
        else:
            mixin.load_lora_into_text_encoder(
                dict(state), network_alphas=alphas, text_encoder=model, prefix=part, **told
            )
    return {
        f"{part}.{_short(name)}": float(module.scaling["read_back"])
        for part, model in models.items()
        for name, module in model.named_modules()
        if "read_back" in getattr(module, "scaling", {})
    }


def _difference(file: AdapterFile, taken: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, float]) -> str:
    """The layers that diffusers would change otherwise than this program does; empty where there is none."""
    wrong = []
    targets = named_layers(file).targets
    for name, roles in named_layers(file).layers.items():
        there = f"{targets[name].part}.{_short(targets[name].diffusers_name)}"
        theirs = taken.get(there, {})
        if there not in scales or not {"down", "up"} <= set(theirs):
            wrong.append(f"{name} is not changed")
            continue
        ours = factors_of({role: tensor for role, tensor in roles.items() if role != "dora_scale"}, name)
        up, down = theirs["up"].float().flatten(1) * scales[there], theirs["down"].float().flatten(1)
        apart = product_norm(torch.cat([ours.up * ours.scale, -up], dim=1), torch.cat([ours.down, down]))
        strength = product_norm(ours.up * ours.scale, ours.down)
        if apart > max(TOLERANCE * strength, 1e-30):
            ratio = product_norm(up, down) / strength if strength else math.inf
            wrong.append(f"{name} is changed with {ratio:.3g} times its strength")
    if not wrong:
        return ""
    return Sentence(
        f"diffusers changes {len(wrong)} of {len(file.layers)} layers differently, the first: {wrong[0]}; ",
        Action.CONVERT_TO_DIFFUSERS.of(file=file.path),
        " writes a file that every version reads right",
    )


def main() -> None:
    """Print a JSON line for each file named."""
    for name in sys.argv[1:]:
        try:
            report = read_back(Path(name))
        except LoraloomError as error:
            report = ReadBackReport(name, "", 0, 0, str(error))
        record = asdict(report)
        if isinstance(report.problem, Sentence):
            record["proposed"] = parts_to_record(report.problem)
        sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
