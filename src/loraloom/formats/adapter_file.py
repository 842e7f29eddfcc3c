"""LoRA files: which layers an adapter can be put on, and the tensors and metadata of a file, layer by layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from loraloom.control import Control, heed, keep_going
from loraloom.errors import AdapterError
from loraloom.formats.adapter_checks import Doubt, doubts_about, problem_of_vectors, widened
from loraloom.formats.adapter_kinds import layouts
from loraloom.formats.cloneofsimo import companions
from loraloom.formats.dialects import CLONEOFSIMO, DIALECTS, KOHYA, PEFT, Dialect, is_text_layer
from loraloom.formats.file_hashes import compute_hashes
from loraloom.formats.foreign import what_it_is
from loraloom.formats.lora_keys import lora_keys
from loraloom.formats.peft_config import add_peft_scales
from loraloom.formats.safetensors_file import safetensors_header
from loraloom.formats.tensors import TensorInfo, bytes_of, open_tensors, write_tensors

__all__ = [
    "AdapterFile",
    "AdapterTarget",
    "content_hash",
    "layer_keys",
    "loras_in",
    "model_hashes",
    "read_adapter_file",
    "write_adapter_file",
]

_KINDS_READ = "LoRA, DoRA, LoHa, LoKr, (IA)3 and full differences of floating-point numbers can be used"


@dataclass(frozen=True)
class AdapterTarget:
    """A layer that an adapter can be put on, and every name it goes by."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    module: str
    """Module path inside that part: ``input_blocks.1.1.transformer_blocks.0.attn1.to_q``."""
    name: str
    """kohya's name: ``lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q``."""
    aliases: tuple[str, ...]
    """Other names accepted when reading (SDXL files with diffusers names)."""
    diffusers_name: str
    """Dotted module path in diffusers or transformers, without the part."""
    tensor: str
    """Checkpoint key of the layer's weight."""
    rows: tuple[int, int] | None
    """Row range inside that tensor (OpenCLIP's fused q, k, v), or None for all of it."""
    shape: tuple[int, ...]
    """Shape of the layer's own weight."""
    kind: str
    """``linear``, ``conv1x1``, ``conv3x3``, or ``norm`` for a normalization, which some files change."""
    block: int
    """Index in kohya's block numbering (U-Net: 25 blocks for SD1 and SD2, 23 for SDXL); layer number in an encoder."""
    extended: bool = False
    """Outside the default set: the res blocks and samplers of the U-Net, which need a convolution rank."""

    @property
    def bias(self) -> str:
        """Checkpoint key of the layer's bias, if it has one; ``rows`` count there too."""
        return self.tensor.removesuffix("weight") + "bias"


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA file as it lies on disk: ``layers[layer name in the file][role]`` are mapped tensors."""

    path: Path
    dialect: Dialect
    layers: Mapping[str, Mapping[str, torch.Tensor]]
    metadata: Mapping[str, str]
    embeddings: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """Textual-inversion vectors that travel with the LoRA, by word and encoder (``any``, ``clip_l``, ``clip_g``)."""
    beside: tuple[Path, ...] = ()
    """Other files that were read with it (cloneofsimo's text encoder and embedding)."""
    doubts: tuple[Doubt, ...] = ()
    """What can be used but is odd: alphas of zero or below, ranks that are larger than they need to be."""


def read_adapter_file(path: Path) -> AdapterFile:
    """Open a LoRA file (``.safetensors``, ``.pt`` or ``.ckpt``, recognised by content); no tensor is read yet.

    cloneofsimo's ``NAME.pt`` of a U-Net brings ``NAME.text_encoder.pt`` (or ``NAME_txt.pt``) and ``NAME.ti.pt`` along.
    Raises AdapterError for a file that holds no LoRA, holds one of a kind that cannot be read, or holds keys that
    belong to no layer: a key that was dropped silently would make the LoRA look different here.
    """
    file = _read_one(path)
    if file.dialect is not CLONEOFSIMO or path.suffix == ".safetensors" or _is_of_text(file):
        return file
    for other in companions(path):
        if other.stem.endswith(".ti"):
            tensors = open_tensors(other)
            for word in tensors:
                if problem := problem_of_vectors(word, tensors.info(word)):
                    raise AdapterError(f"{other}: {problem}", f"move it away to use {path.name} without it")
            vectors = {word: {"any": widened(tensors[word])} for word in tensors}
            file = replace(file, embeddings={**file.embeddings, **vectors}, beside=(*file.beside, other))
        elif _is_of_text(text := _read_one(other)):
            file = replace(file, layers={**file.layers, **text.layers}, beside=(*file.beside, other))
    return file


_NAMES_IN_FOLDERS = ("pytorch_lora_weights", "adapter_model")
"""What diffusers and PEFT call the LoRA in a folder of theirs."""


def loras_in(folder: Path) -> list[Path]:
    """The LoRAs in a folder that diffusers or PEFT wrote, so that an error can name them; empty for any other."""
    paths = (folder / f"{name}{suffix}" for name in _NAMES_IN_FOLDERS for suffix in (".safetensors", ".bin"))
    return [path for path in paths if path.is_file()]


def _is_of_text(file: AdapterFile) -> bool:
    """Whether the file changes a text encoder and nothing else."""
    return all(is_text_layer(name) for name in file.layers)


def _read_one(path: Path) -> AdapterFile:
    if path.is_dir() and (inside := loras_in(path)):
        raise AdapterError(f"{path} is a folder", f"give the LoRA in it: {inside[0]}")

    tensors = open_tensors(path)
    infos = {key: tensors.info(key) for key in tensors}
    keys = lora_keys(infos, tensors.metadata)
    if keys is None:
        raise AdapterError(f"{path} is not a LoRA file: it {what_it_is(infos)}", "give the file of a LoRA")
    if keys.problem:
        raise AdapterError(f"{path}: {keys.problem}", _KINDS_READ)
    layers = {name: {role: widened(tensors[key]) for role, key in roles.items()} for name, roles in keys.layers.items()}

    # An alpha scales its whole layer, so NaN or infinity in it would be all that is seen of the LoRA.
    for name, roles in layers.items():
        if "alpha" in roles and not math.isfinite(float(roles["alpha"])):
            raise AdapterError(f"{path}: the alpha of layer {name} is {float(roles['alpha'])}", "the file is damaged")

    # PEFT keeps its scales outside of the tensors, in a configuration.
    if PEFT in keys.dialects:
        try:
            add_peft_scales(path, layers, tensors.metadata)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error.problem}", error.hint) from error

    embeddings = {
        word: {place: widened(tensors[key]) for place, key in places.items()}
        for word, places in keys.embeddings.items()
    }
    doubts = doubts_about(layers, lambda name: float(layers[name]["alpha"]) if "alpha" in layers[name] else None)
    return AdapterFile(path, keys.dialect, layers, dict(tensors.metadata), embeddings, doubts=doubts)


def layer_keys(name: str, roles: Mapping[str, torch.Tensor], dialect: Dialect = KOHYA) -> dict[str, torch.Tensor]:
    """One layer's tensors under their keys in a file."""
    return {name + dialect.suffix(role): tensor for role, tensor in roles.items()}


def write_adapter_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    source: str = "",
    check: Callable[[Path], None] | None = None,
    control: Control = keep_going,
) -> None:
    """Write tensors under their keys atomically, every floating-point one as ``dtype``, with the hashes of the file.

    Commands write through :func:`loraloom.formats.adapter_writer.write_lora`, which knows the keys. What a kind says to
    be exact (DoRA's magnitudes) stays as it is. ``source`` is where the values come from. Raises AdapterError when a
    value is NaN, or does not fit into ``dtype``: such a file would be ruined silently. ``check`` is given the finished
    file before it takes its place; ``control`` is heeded between two tensors until then.
    """
    cast = {}
    exact = _exact_ends()
    for key, tensor in tensors.items():
        wanted = dtype if tensor.is_floating_point() and not key.endswith(exact) else tensor.dtype
        cast[key] = tensor.detach().to("cpu", wanted).contiguous()
        if bool(torch.isfinite(cast[key]).all()):
            continue
        if not bool(torch.isfinite(tensor.float()).all()):
            raise AdapterError(f"{source or path}: {key} holds NaN or infinite values", f"{path} was not written")
        raise AdapterError(f"{path} was not written: {key} is not finite as {dtype}", "save in float or bf16")
    model_hash, legacy_hash = model_hashes(cast, metadata, control)
    hashes = {"sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
    write_tensors(path, cast, metadata={**metadata, **hashes}, check=check, control=control)


@cache
def _exact_ends() -> tuple[str, ...]:
    """Ends of the keys of tensors that are never rounded."""
    written = (
        suffix
        for layout in layouts().values()
        for dialect in DIALECTS.values()
        for suffix, role in layout.ends(dialect.name).items()
        if role in layout.exact
    )
    return tuple(dict.fromkeys(written))


def model_hashes(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], control: Control = keep_going
) -> tuple[str, str]:
    """The hashes of the tensors in file order: ``sshs_model_hash`` (64 hex digits) and ``sshs_legacy_hash`` (8).

    The first is the SHA-256 of everything behind the header. The second, the older web UI extension's, is of
    64 KiB that begin 1 MiB into a file whose header holds the ``ss_*`` metadata alone. ``control`` is heeded between
    two tensors.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    infos = {key: TensorInfo(tensor.dtype, tuple(tensor.shape)) for key, tensor in ordered.items()}
    header = safetensors_header(infos, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    model, window, position = hashlib.sha256(), bytearray(), len(header)
    start, stop = 0x100000, 0x110000
    if position > start:
        window += header[start:stop]
    for data in _raw_bytes(ordered):
        heed(control)
        model.update(data)
        if position < stop and position + len(data) > start:
            window += data[max(0, start - position) : stop - position]
        position += len(data)
    return model.hexdigest(), hashlib.sha256(window).hexdigest()[:8]


def content_hash(path: Path, control: Control = keep_going) -> str:
    """What the web UI shows as a LoRA's hash, computed from the file: the SHA-256 of what follows the header.

    Of a file that is not safetensors, that of the whole file. ``control`` is heeded while it is read.
    """
    return compute_hashes(path, control).content


def _raw_bytes(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
    for tensor in tensors.values():
        yield bytes_of(tensor).tobytes()
