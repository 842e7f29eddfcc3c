"""Diffusers folders: read as if they were a single checkpoint, and written complete, configs and tokenizers too.

What a folder has no place for is added when one is read, as other programs expect it in a single file: CLIP's
``position_ids``, OpenCLIP's ``logit_scale``, and for SD 2 the last text layer and ``text_projection``, which are
never read there (diffusers keeps 23 of 24 layers; the 24th becomes a copy of the 23rd, the projection an identity).
The noise schedule's tables in SD 1 and SD 2 files are not added: every program computes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from loraloom.diffusion.objectives import Prediction
from loraloom.errors import CheckpointError, FileFormatError, MissingFileError, OutputError
from loraloom.formats.files import make_folder, sync_folder, write_text
from loraloom.formats.tensors import TensorInfo, TensorSource, open_tensors, write_tensors
from loraloom.formats.unfinished import remove_leftovers, unfinished_folder
from loraloom.models.diffusers_configs import pipeline_files, text_config, unet_config, vae_config
from loraloom.models.family import FAMILIES, Family, TextPart
from loraloom.models.names import Pair, PartKind, pairs_from_checkpoint
from loraloom.models.prediction import PredictionChoice, prediction_metadata
from loraloom.models.resolution import OwnResolution, own_resolution, resolution_metadata
from loraloom.models.translated import Part, Stored
from loraloom.reading import read_text

__all__ = ["FolderTensors", "is_diffusers_folder", "write_diffusers_folder"]

Shapes = dict[str, tuple[int, ...]]

_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".non_ema", ".fp16", ".bf16")
_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


class InfoMapping(Protocol):
    """Tensors by checkpoint name, their types and shapes known before their data."""

    def __getitem__(self, name: str) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object) -> bool: ...
    def info(self, name: str) -> TensorInfo: ...


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder looks like a pipeline saved by diffusers (any family)."""
    return (path / "model_index.json").is_file() or (path / "unet").is_dir()


# ------------------------------------------------------------------------------------------------ reading


class FolderTensors(Mapping[str, Tensor]):
    """Lazy mapping from checkpoint key to tensor over a Diffusers folder; single files inside are mapped.

    Raises CheckpointError for a pipeline of another architecture, MissingFileError for a part without weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "unet").is_dir():
            kind = _read_json(path / "model_index.json").get("_class_name", "another pipeline")
            raise CheckpointError(f"{path} is a {kind}, which is not supported", "use Stable Diffusion 1, 2 or XL")
        unet, vae = _part(path / "unet"), _part(path / "vae")
        text = {name: _part(path / name) for name in ("text_encoder", "text_encoder_2") if (path / name).is_dir()}
        family = _family_of(path, unet, text)
        self.metadata = _scheduler_metadata(path) | resolution_metadata(_unet_config(path), family)
        self._tensors = unet.stored("unet", family.unet_prefix) | vae.stored("vae", family.vae_prefix)
        for part in family.text_parts:
            if part.part in text:
                self._tensors |= text[part.part].stored(part.encoder, part.prefixes[0])
                self._tensors |= _fillers(part, self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].load()

    def mapped(self, name: str) -> Tensor:
        """A tensor that takes no memory where the folder has it as a checkpoint does. It must not be changed."""
        return self._tensors[name].mapped()

    def check(self, name: str) -> None:
        """Read a tensor against the checksums that its file carries, once; FileFormatError if one differs."""
        self._tensors[name].check()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor, without touching its data."""
        return self._tensors[name].info


def _part(folder: Path) -> Part:
    """The weight files of one subfolder, as one mapping from diffusers names."""
    files = [open_tensors(weights) for weights in _weight_files(folder)]
    return Part(str(folder), {name: (file, name) for file in files for name in file})


def _weight_files(folder: Path) -> list[Path]:
    """The file of a part, or its shards; full precision before half, safetensors before pickles."""
    names = (stem + end for end in _endings() for stem in _WEIGHTS)
    chosen = next((folder / name for name in names if (folder / name).is_file()), None)
    if chosen is None:
        raise MissingFileError(f"{folder} holds no weights", "expected diffusion_pytorch_model or model .safetensors")

    if chosen.suffix != ".json":
        return [chosen]
    weight_map = _read_json(chosen).get("weight_map")

    # Shards lie beside their list. A path in it could be that of any file of the machine.
    shards = sorted({str(shard) for shard in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not shards or any(Path(shard).name != shard for shard in shards):
        raise FileFormatError(f"{chosen}: is not a list of the files beside it", "download the folder again")
    return [folder / shard for shard in shards]


def _endings() -> Iterator[str]:
    for variant in _VARIANTS:
        yield from (f"{variant}{suffix}" for suffix in _SUFFIXES)
        yield from (f"{suffix.removesuffix('.json')}{variant}.json" for suffix in _SUFFIXES if suffix.endswith(".json"))


def _family_of(path: Path, unet: Part, text: Mapping[str, Part]) -> Family:
    """Two text encoders: SDXL. One: its activation tells CLIP (SD 1) from OpenCLIP; failing that, the U-Net's
    projections do."""
    if "text_encoder_2" in text:
        name = "sdxl"
    else:
        config = path / "text_encoder" / "config.json"
        activation = _read_json(config).get("hidden_act") if config.is_file() else None
        linear = any(key.endswith("proj_in.weight") and len(shape) == 2 for key, shape in unet.shapes.items())
        is_open_clip = linear if activation is None else activation == "gelu"
        name = "sd2" if is_open_clip else "sd1"
    family: Family = FAMILIES.load(name)()
    return family


def _fillers(part: TextPart, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors that a single file has and a Diffusers folder does not (see the module's docstring)."""
    prefix = part.prefixes[0]
    if part.encoder == "clip":
        positions = tensors[f"{prefix}embeddings.position_embedding.weight"].info.shape[0]
        info = TensorInfo(torch.int64, (1, positions))
        return {f"{prefix}embeddings.position_ids": Stored(info, lambda _: torch.arange(positions)[None])}
    dtype, (_, width) = (table := tensors[f"{prefix}token_embedding.weight"].info).dtype, table.shape
    scalar = Stored(TensorInfo(dtype, ()), lambda _: torch.tensor(math.log(100.0), dtype=dtype))
    added = {f"{prefix}logit_scale": scalar}
    if part.trimmed_layers is not None:
        identity = Stored(TensorInfo(dtype, (width, width)), lambda _: torch.eye(width, dtype=dtype))
        added |= {f"{prefix}text_projection": identity} | _copied_layer(f"{prefix}transformer.resblocks.", tensors)
    return added


def _copied_layer(prefix: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    last = max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))
    start = f"{prefix}{last}."
    return {
        f"{prefix}{last + 1}.{name.removeprefix(start)}": stored
        for name, stored in tensors.items()
        if name.startswith(start)
    }


def _scheduler_metadata(path: Path) -> dict[str, str]:
    config = path / "scheduler" / "scheduler_config.json"
    if not config.is_file():
        return {}
    values = _read_json(config)
    prediction: Prediction = "v" if values.get("prediction_type") == "v_prediction" else "epsilon"
    return prediction_metadata(PredictionChoice(prediction, values.get("rescale_betas_zero_snr") is True))


def _unet_config(path: Path) -> dict[str, Any]:
    config = path / "unet" / "config.json"
    return _read_json(config) if config.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: cannot be read as JSON, {error}", "download the folder again") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: is not a JSON object", "download the folder again")
    return value


# ------------------------------------------------------------------------------------------------ writing


def write_diffusers_folder(
    path: Path,
    tensors: InfoMapping,
    family: Family,
    signs: PredictionChoice,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a pipeline folder that diffusers loads offline; ``signs`` go into its scheduler's config.

    ``dtype`` None keeps each tensor's own. Of the ``metadata`` the resolution is kept, in the U-Net's configuration.

    The folder appears complete or not at all. Raises OutputError when there already is something at ``path``.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} exists already and is not an empty folder", "choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} does not exist", "create it first")
    remove_leftovers(path.parent)
    resolution = own_resolution(family, metadata or {}, signs.prediction)
    try:
        with unfinished_folder(path.parent) as unfinished:
            for name, text in _texts(tensors, family, signs, resolution).items():
                make_folder((unfinished / name).parent)
                write_text(unfinished / name, text)
            for folder, sources in _weights(tensors, family, dtype).items():
                write_tensors(unfinished / folder, sources, metadata={"format": "pt"})
            if path.exists():
                path.rmdir()
            unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written, {error}", "check space and permissions") from error
    sync_folder(path.parent)


def _part_shapes(tensors: InfoMapping, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): tensors.info(name).shape for name in tensors if name.startswith(prefix)}


def _parts(tensors: InfoMapping, family: Family) -> Iterator[tuple[str, PartKind, str, list[Pair]]]:
    """(subfolder, kind, prefix, pairs) of every part."""
    for folder, kind, prefix in (("unet", "unet", family.unet_prefix), ("vae", "vae", family.vae_prefix)):
        shapes = _part_shapes(tensors, prefix)
        if not shapes:
            raise CheckpointError(f"the checkpoint holds no {folder}", "a Diffusers folder needs every part")
        yield folder, kind, prefix, pairs_from_checkpoint(kind, shapes)  # type: ignore[misc, arg-type]
    for part in family.text_parts:
        text_prefix = part.prefix(tensors)  # type: ignore[arg-type]
        if text_prefix is None:
            raise CheckpointError(f"the checkpoint holds no {part.part}", "a Diffusers folder needs every part")
        pairs = pairs_from_checkpoint(part.encoder, _part_shapes(tensors, text_prefix))
        yield part.part, part.encoder, text_prefix, _read_pairs(part, pairs)


def _read_pairs(part: TextPart, pairs: list[Pair]) -> list[Pair]:
    """Without the layer and the projection that SD 2 never reads."""
    if part.trimmed_layers is None:
        return pairs
    layers = {int(pair.checkpoint.split(".")[2]) for pair in pairs if ".resblocks." in pair.checkpoint}
    unread = {str(number) for number in range(len(layers) - part.skip_in(len(layers)) + 1, len(layers))}
    return [
        pair
        for pair in pairs
        if pair.checkpoint != "text_projection"
        and not (".resblocks." in pair.checkpoint and pair.checkpoint.split(".")[2] in unread)
    ]


def _weights(tensors: InfoMapping, family: Family, dtype: torch.dtype | None) -> dict[str, list[TensorSource]]:
    return {
        f"{folder}/{'model' if folder.startswith('text') else 'diffusion_pytorch_model'}.safetensors": [
            _source(tensors, prefix, pair, dtype) for pair in pairs
        ]
        for folder, _, prefix, pairs in _parts(tensors, family)
    }


def _source(tensors: InfoMapping, prefix: str, pair: Pair, dtype: torch.dtype | None) -> TensorSource:
    info = tensors.info(prefix + pair.checkpoint)
    kept = dtype or info.dtype
    return TensorSource(
        pair.diffusers,
        TensorInfo(kept, pair.diffusers_shape(info.shape)),
        lambda: pair.to_diffusers(tensors[prefix + pair.checkpoint]).to(kept),
    )


def _texts(tensors: InfoMapping, family: Family, signs: PredictionChoice, resolution: OwnResolution) -> dict[str, str]:
    """Every file of the folder that is not weights."""
    configs: dict[str, dict[str, Any]] = {}
    for folder, kind, prefix, pairs in _parts(tensors, family):
        shapes = {pair.diffusers: pair.diffusers_shape(tensors.info(prefix + pair.checkpoint).shape) for pair in pairs}
        match kind:
            case "unet":
                configs[folder] = unet_config(shapes, family, resolution)
            case "vae":
                configs[folder] = vae_config(shapes, family, resolution)
            case "clip" | "open_clip":
                configs[folder] = text_config(shapes, kind)
    texts = {f"{folder}/config.json": json.dumps(config, indent=2) + "\n" for folder, config in configs.items()}
    return texts | pipeline_files(family, signs)
