"""A LoRA file read again by a program that is not ours: diffusers must find a layer for every tensor in it.

Run as ``python -m loraloom.weights.read_back FILE...`` it prints one JSON line for each file: importing diffusers takes
seconds and memory that a training process should not spend.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.errors import LoraloomError
from loraloom.formats.adapter_file import AdapterFile, read_adapter_file
from loraloom.formats.dialects import kind_of, title_of
from loraloom.formats.entries import TensorInfo
from loraloom.formats.lora_family import family_name
from loraloom.formats.lora_keys import lora_keys
from loraloom.formats.tensors import open_tensors
from loraloom.models.diffusers_configs import unet_config
from loraloom.models.family import FAMILIES, Family
from loraloom.models.names import pairs_from_checkpoint
from loraloom.models.resolution import own_resolution

__all__ = ["ReadBackReport", "read_back"]


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
    """Have diffusers sort every tensor of a LoRA file into its own U-Net and text encoders. Needs diffusers.

    The models are without weights; shapes were checked when the file was made.
    """
    file = read_adapter_file(path)
    count = len(open_tensors(path))
    for name, roles in file.layers.items():
        if kind_of({role for role in roles if role != "dora_scale"}) != "lora" or "mid" in roles:
            return ReadBackReport(str(path), "", count, 0, f"diffusers does not read {title_of(roles)} ({name})")
    import diffusers

    reader = f"diffusers {diffusers.__version__}"
    try:
        renamed, alphas, modules = _sorted_by_diffusers(path, file)
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        return ReadBackReport(str(path), reader, count, 0, str(error)[:500])
    keys = lora_keys({key: TensorInfo(t.dtype, tuple(t.shape)) for key, t in renamed.items()}, {})
    layers = {} if keys is None else {name: roles for name, roles in keys.layers.items() if name in modules}
    used = sum(len(roles) for roles in layers.values()) + alphas
    problem = ""
    if used < count:
        homeless = [] if keys is None else [name for name in keys.layers if name not in modules] + list(keys.unknown)
        first = f", the first is {homeless[0]}" if homeless else ""
        problem = f"diffusers has no layer for {count - used} of {count} tensors{first}"
    return ReadBackReport(str(path), reader, count, used, problem)


def _sorted_by_diffusers(path: Path, file: AdapterFile) -> tuple[dict[str, Tensor], int, set[str]]:
    """The tensors under diffusers' names, how many alphas it took beside them, and the modules of its models."""
    import diffusers
    from diffusers import loaders

    family: Family = FAMILIES.load(family_name(file.layers, file.metadata) or "sd1")()
    start = family.unet_prefix
    shapes = {key.removeprefix(start): shape for key, shape in family.full_size().items() if key.startswith(start)}
    pairs = pairs_from_checkpoint("unet", shapes)
    usual = own_resolution(family, {}, None)
    config = unet_config(
        {pair.diffusers: pair.diffusers_shape(shapes[pair.checkpoint]) for pair in pairs}, family, usual
    )
    unet_class: Any = diffusers.UNet2DConditionModel
    with torch.device("meta"):
        unet = unet_class.from_config(config)
    modules = {f"unet.{name}" for name, _ in unet.named_modules()}
    text = [target for target in family.all_targets() if target.part != "unet"]
    modules |= {f"{target.part}.{target.diffusers_name}" for target in text}
    mixin = "StableDiffusionXLLoraLoaderMixin" if family.uses_sizes else "StableDiffusionLoraLoaderMixin"
    # Other containers than safetensors wrap the tensors, which diffusers does not expect: the names are what counts.
    tensors = open_tensors(path)
    given = str(path) if tensors.kind == "safetensors" else {key: tensors[key] for key in tensors}
    state, alphas = getattr(loaders, mixin).lora_state_dict(given, unet_config=unet.config)[:2]
    return state, len(alphas or ()), modules


def main() -> None:
    """Print a JSON line for each file named."""
    for name in sys.argv[1:]:
        try:
            report = read_back(Path(name))
        except LoraloomError as error:
            report = ReadBackReport(name, "", 0, 0, str(error))
        sys.stdout.write(json.dumps(asdict(report)) + "\n")


if __name__ == "__main__":
    main()
