"""Mutated LoRA files: whatever is done to one, every door refuses it in a sentence or does its work.

``weights/test_fuzz_adapters.py`` runs a short campaign, ``python tests/weights/fuzz_adapters.py`` the long one.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapter_corpus import Draft, drafts
from loraloom.formats.entries import TensorInfo
from loraloom.formats.safetensors_file import DTYPE_NAMES, safetensors_header, safetensors_order
from loraloom.formats.tensors import bytes_of

__all__ = ["Seeds", "mutate", "write"]

Chance = random.Random

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)
DTYPES = (*FLOATS, *2 * EIGHT_BITS, *2 * OTHERS)

NUMBERS = (0.0, -0.0, -1.3, 1e-30, 1e4, 7e4, 1e30, 3e38, float("inf"), float("-inf"), float("nan"), 0.3, 4096.0)


class Seeds:
    """The files to start from."""

    def __init__(self) -> None:
        self.by_name = drafts()
        self.names = sorted(self.by_name)

    def pick(self, chance: Chance) -> Draft:
        """One of them; the large one rarely."""
        name = chance.choice(self.names)
        if len(self.by_name[name].tensors) > 100 and chance.random() < 0.8:
            name = chance.choice(self.names)
        return self.by_name[name].copy()


def mutate(chance: Chance, seeds: Seeds) -> Draft:
    """A file with a few mutations; one in a hundred has none."""
    draft = seeds.pick(chance)
    if chance.random() < 0.01:
        return draft
    for _ in range(chance.choice((1, 1, 1, 1, 2, 3, 6))):
        chance.choice(_MUTATIONS)(chance, draft, seeds)
    return draft


# ------------------------------------------------------------------------------------------------ writing


def write(draft: Draft, folder: Path, name: str) -> Path:
    """Put the file into a folder, as quickly as can be, and what lies beside it."""
    stem = name if draft.config is None else "adapter_model"
    path = folder / f"{stem}{draft.suffix}"
    path.write_bytes(_torch_bytes(draft) if draft.suffix == ".pt" else _safetensors_bytes(draft))
    if draft.config is not None:
        (folder / "adapter_config.json").write_text(draft.config, encoding="utf-8")
    return path


def _safetensors_bytes(draft: Draft) -> bytes:
    """What the safetensors library writes; a type that it has no name for becomes float32."""
    held = {key: t if t.dtype in DTYPE_NAMES else t.real.float() for key, t in draft.tensors.items()}
    infos = {key: TensorInfo(tensor.dtype, tuple(tensor.shape)) for key, tensor in held.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: safetensors_order(*item)))
    raw = [bytes_of(held[key]).tobytes() for key in ordered]
    return safetensors_header(ordered, draft.metadata) + b"".join(raw)


def _torch_bytes(draft: Draft) -> bytes:
    held = {key: tensor.clone() for key, tensor in draft.tensors.items()}
    buffer = io.BytesIO()
    torch.save(list(held.values()) if draft.listed else held, buffer)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ types and values


def _some(chance: Chance, draft: Draft) -> list[str]:
    """One tensor mostly, sometimes all of a role, a layer, or the file."""
    keys = list(draft.tensors)
    if not keys:
        return []
    key = chance.choice(keys)
    kind = chance.random()
    if kind < 0.6:
        return [key]
    if kind < 0.75:
        end = key[key.find(".", len(key) // 2) :]
        return [other for other in keys if other.endswith(end)]
    if kind < 0.9:
        start = key.rpartition(".lora")[0] or key.rpartition(".")[0]
        return [other for other in keys if other.startswith(start)]
    return keys


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex() and not dtype.is_complex:
        tensor = tensor.real
    return tensor.float().to(dtype) if dtype in EIGHT_BITS or tensor.dtype in EIGHT_BITS else tensor.to(dtype)


def _other_type(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    dtype = chance.choice(DTYPES)
    for key in _some(chance, draft):
        draft.tensors[key] = _cast(draft.tensors[key], dtype)


def _other_values(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    number = chance.choice(NUMBERS)
    everywhere = chance.random() < 0.5
    for key in _some(chance, draft):
        dtype = draft.tensors[key].dtype
        values = _cast(draft.tensors[key], torch.float32).clone()
        if values.numel():
            values.reshape(-1)[slice(None) if everywhere else slice(0, 1)] = number
        # Whole numbers cannot hold NaN: what the cast makes of it differs from machine to machine.
        whole = not dtype.is_floating_point and not dtype.is_complex
        draft.tensors[key] = _cast(values.nan_to_num(0.0, 1.0, -1.0) if whole else values, dtype)


def _other_alpha(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    keys = [key for key in draft.tensors if key.endswith(".alpha")]
    if not keys:
        return
    made: Tensor = torch.tensor(chance.choice(NUMBERS))
    match chance.randrange(8):
        case 0:
            made = torch.tensor(complex(1.3, chance.choice((0.0, 0.7))))
        case 1:
            made = torch.full(chance.choice([(1,), (1, 1), (2,), (0,), (3, 1)]), 1.3)
        case 2:
            made = torch.tensor(chance.choice((0, 1, -2, 3)), dtype=chance.choice(OTHERS[:5]))
        case 3:
            made = torch.tensor(True)
        case 4:
            made = _cast(made, chance.choice((*FLOATS, *EIGHT_BITS)))
    for key in keys if chance.random() < 0.3 else [chance.choice(keys)]:
        draft.tensors[key] = made


# ------------------------------------------------------------------------------------------------ shapes


def _other_shape(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    change = chance.choice(_SHAPES)
    for key in _some(chance, draft):
        draft.tensors[key] = change(chance, draft.tensors[key])


def _axis(chance: Chance, tensor: Tensor) -> int:
    return chance.randrange(tensor.ndim) if tensor.ndim else 0


def _cut(chance: Chance, tensor: Tensor) -> Tensor:
    """Fewer rows or columns, sometimes none."""
    if not tensor.ndim:
        return tensor
    axis = _axis(chance, tensor)
    return tensor.narrow(
        axis, 0, chance.choice((0, min(1, tensor.shape[axis]), max(0, tensor.shape[axis] - 1), tensor.shape[axis]))
    )


def _grown(chance: Chance, tensor: Tensor) -> Tensor:
    """More rows or columns: a rank above the layer's size, or another layer's size."""
    if not tensor.ndim or not tensor.numel():
        return tensor
    axis = _axis(chance, tensor)
    length = chance.choice((tensor.shape[axis] + 1, 2 * tensor.shape[axis], 64, 600))
    index = torch.arange(length) % tensor.shape[axis]
    return _as_bytes(tensor, lambda raw: raw.index_select(axis, index))


def _as_bytes(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Types of eight bits have no indexing on every machine; their bytes do."""
    if tensor.dtype not in EIGHT_BITS:
        return change(tensor)
    return change(tensor.view(torch.uint8)).view(tensor.dtype)


_SHAPES: Sequence[Callable[[Chance, Tensor], Tensor]] = (
    _cut,
    _cut,
    _grown,
    _grown,
    lambda chance, tensor: tensor.reshape(-1),
    lambda chance, tensor: tensor[None],
    lambda chance, tensor: tensor[..., None],
    lambda chance, tensor: tensor[..., None, None],
    lambda chance, tensor: tensor.flatten(1) if tensor.ndim > 1 else tensor,
    lambda chance, tensor: tensor[0] if tensor.ndim and len(tensor) else tensor,
    lambda chance, tensor: tensor.transpose(0, -1) if tensor.ndim > 1 else tensor,
    lambda chance, tensor: tensor.reshape(-1)[:1].reshape(()) if tensor.numel() else tensor,
    lambda chance, tensor: tensor.reshape(*tensor.shape, *(1 for _ in range(5))),
)


# ------------------------------------------------------------------------------------------------ names

_PIECES = (
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_mid.weight",
    ".alpha",
    ".dora_scale",
    ".diff",
    ".diff_b",
    ".w_norm",
    ".b_norm",
    ".weight",
    ".bias",
    ".on_input",
    ".hada_w1_a",
    ".hada_w2_b",
    ".hada_t1",
    ".lokr_w1",
    ".lokr_w1_a",
    ".lokr_w2",
    ".lokr_w2_b",
    ".lokr_t2",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_A.default.weight",
    ".lora_A.my.style.weight",
    ".lora_B.weight.weight",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.default.weight",
    ".lora.down.weight",
    ".lora_linear_layer.up.weight",
    ".processor.to_q_lora.up.weight",
    ".oft_blocks",
    ".set_weight",
    ".lora_up.0.weight",
    ".scale_weight",
    "..weight",
    "",
)
"""Ends of keys in all dialects, of kinds that are not read, and of none."""
_STARTS = (
    "lora_unet_",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "lycoris_",
    "unet.",
    "text_encoder.",
    "text_encoder_2.",
    "base_model.model.",
    "unet.base_model.model.",
    "unet.module.",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_g.transformer.",
    "text_encoders.",
    "lora_unet",
    "unet:0:up",
    ".",
    "",
)
_STRANGE = (
    "é",
    "\u202e",
    "\n",
    "\x00",
    "%s",
    "{0}",
    " ",
    "x" * 300,
    "..",
    "/../",
    "[red]",
    "-1",
    "99999999999999999999",
)


def _renamed(chance: Chance, draft: Draft, changes: dict[str, str]) -> None:
    """Other keys at the same places; a key that is there already loses its tensor."""
    draft.tensors = {changes.get(key, key): tensor for key, tensor in draft.tensors.items()}


def _other_end(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    end = chance.choice(_PIECES)
    keys = _some(chance, draft)
    _renamed(chance, draft, {key: _layer(key) + end for key in keys})


def _layer(key: str) -> str:
    """What may be the layer's name in a key."""
    starts = [at for end in _PIECES if len(end) > 1 and key.endswith(end) and (at := len(key) - len(end)) > 0]
    return key[: min(starts, default=max(key.rfind("."), 0))]


def _other_start(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    new = chance.choice(_STARTS)
    old = sorted((start for start in _STARTS if start), key=len, reverse=True)
    changes = {}
    for key in _some(chance, draft):
        start = next((start for start in old if key.startswith(start)), "")
        changes[key] = new + key.removeprefix(start if chance.random() < 0.7 else "")
    _renamed(chance, draft, changes)


def _strange_name(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    piece = chance.choice(_STRANGE)
    changes = {}
    for key in _some(chance, draft)[:5]:
        at = chance.randrange(len(key) + 1)
        changes[key] = (key[:at] + piece + key[at + chance.choice((0, 1, 4)) :])[:900]
    _renamed(chance, draft, changes)


def _other_number(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    """Another block, layer or index."""
    changes = {}
    digit, other = str(chance.randrange(3)), chance.choice("0123456789")
    for key in _some(chance, draft):
        if digit in key:
            changes[key] = key.replace(digit, other, 1)
    _renamed(chance, draft, changes)


# ------------------------------------------------------------------------------------------------ what is in the file


def _missing(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    for key in _some(chance, draft):
        draft.tensors.pop(key)


def _swapped(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    if len(draft.tensors) > 1:
        one, other = chance.sample(list(draft.tensors), 2)
        draft.tensors[one], draft.tensors[other] = draft.tensors[other], draft.tensors[one]


def _turned_round(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    """The two factors of a layer change places, or of all layers."""
    pairs = (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("hada_w1_a", "hada_w1_b"), ("lokr_w1", "lokr_w2"))
    one, other = chance.choice(pairs)
    changes = {}
    for key in _some(chance, draft):
        changes[key] = key.replace(one, "\0").replace(other, one).replace("\0", other)
    _renamed(chance, draft, changes)


def _mixed(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    """Tensors of another file: another dialect, kind or family, the same layers spelled twice."""
    related = [name for name in seeds.names if name.startswith(draft.family)] if chance.random() < 0.7 else seeds.names
    other = seeds.by_name[chance.choice(related)].copy()
    share = chance.choice((0.1, 0.5, 1.0))
    draft.tensors |= {key: tensor for key, tensor in other.tensors.items() if chance.random() < share}
    if chance.random() < 0.3:
        draft.metadata |= other.metadata


def _extra(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    """Something that is no layer, or one that no model has."""
    key = chance.choice(
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            "bundle_emb.word.string_to_param.*",
            "bundle_emb.word.clip_g",
            "bundle_emb..x",
            "<s1>:<embed>",
            "unet:0:up",
            "unet:0:down",
            "text_encoder:3:up",
            "emb_params",
            "lora_unet_no_such_layer.lora_down.weight",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.oft_diag",
            "__metadata",
            "0",
            "1",
        )
    )
    shape = chance.choice([(), (16,), (2, 16), (8, 4, 3, 3), (0,)])
    draft.tensors[key] = _cast(torch.full(shape, 0.3), chance.choice(DTYPES))


def _empty(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    if chance.random() < 0.2:
        draft.tensors.clear()


def _container(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    draft.suffix = chance.choice((".pt", ".safetensors"))
    draft.listed = draft.suffix == ".pt" and chance.random() < 0.3


# ------------------------------------------------------------------------------------------------ what the file says

_SAID: Sequence[object] = (
    *(None, True, False, 0, -1, 1, 2, 3.7, 1e308, 10**400, float("nan"), float("inf"), "", "3", "none", "é\ud800"),
    *([], [1, 2], {}, {"": 1}, {"attn1.to_q": 0}, {"(": 2}, {"attn1": "x"}, {"to_q": -3.0}, {".*": 1e300}),
    *({"to_k|to_q": 2.5}, {"attn1.to_q": None}, {"a" * 400: 1}, {"(a+)+$": 1}, "a" * 70_000),
)
_PATTERNS = ("to_q", "attn1.to_q", ".*", ".*to_k", "to_[qk]", "(", "(a+)+$", ".*.*.*.*x", "", "proj_in", "ö", "a" * 400)
_NAMES = (
    *("r", "lora_alpha", "alpha", "rank", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "peft_type"),
    *("decompose_both", "decompose_factor", "target_modules", "unet.alpha", "unet.r", "unet.", ".", ""),
)
_KEYS = (
    *("ss_base_model_version", "ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_network_args"),
    *("ss_tag_frequency", "ss_v2", "ss_output_name", "modelspec.architecture", "modelspec.title", "modelspec.tags"),
    *("modelspec.trigger_phrase", "modelspec.thumbnail", "sshs_model_hash", "sshs_legacy_hash", "loraloom.combined"),
    *("lora_adapter_metadata", "loraloom.preferred_weight", "format", "ss_sd_model_name", "ss_resolution", "é"),
)
_TEXTS = (
    *("", "x", "[", "{}", "[]", "null", "1e999", '"', "sd_v1", "sd_v2_v", "sdxl_base_v1-0", "flux1", "[red]a[/]"),
    *('{"3_x": {"a": 1e400}}', '{"x": {"a": "b"}}', "[" * 3000, "\u202e\x1b[31m", "data:image/png;base64,AAAA"),
    *("stable-diffusion-xl-v1-base/lora", "f" * 64, "F" * 12, "n\ne\nw", "a" * 5000),
)


def _other_metadata(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    match chance.randrange(4):
        case 0:
            draft.metadata.clear()
        case 1 | 2:
            draft.metadata[chance.choice(_KEYS)] = chance.choice(_TEXTS)
        case _:
            part = chance.choice(("unet.", "unet.", "text_encoder.", "text_encoder_2.", ""))
            told = {part + key: value for key, value in _configuration(chance).items()}
            draft.metadata["lora_adapter_metadata"] = json.dumps(told)


def _configuration(chance: Chance) -> dict[str, object]:
    """PEFT's, with something strange in it: mostly in one of the values that matter."""
    told: dict[str, object] = {"r": 3, "lora_alpha": 1.3, "alpha": 1.3}
    match chance.randrange(4):
        case 0:
            told[chance.choice(("r", "lora_alpha"))] = chance.choice((*_SAID, *NUMBERS))
        case 1:
            which = chance.choice(("rank_pattern", "alpha_pattern"))
            told[which] = {chance.choice(_PATTERNS): chance.choice((*_SAID, *NUMBERS, 2.5, 0.7))}
        case 2:
            told[chance.choice(_NAMES)] = chance.choice(_SAID)
        case _:
            told = {chance.choice(_NAMES): chance.choice(_SAID) for _ in range(chance.randrange(1, 5))}
    return told


def _other_config(chance: Chance, draft: Draft, seeds: Seeds) -> None:
    """``adapter_config.json`` beside the file, or in its header."""
    stored = json.dumps(_configuration(chance))
    kind = chance.random()
    if kind < 0.4:
        bare = {key: t for key, t in draft.tensors.items() if not key.startswith(("unet.", "text_encoder"))}
        if bare or not draft.tensors:
            draft.config = stored
            return
        draft.tensors = {key.removeprefix("unet."): t for key, t in draft.tensors.items() if key.startswith("unet.")}
        draft.config = stored
    elif kind < 0.8:
        whole = {f"unet.{key}": value for key, value in json.loads(stored).items()}
        draft.metadata["lora_adapter_metadata"] = json.dumps(whole)
    else:
        draft.config = chance.choice((stored[: len(stored) // 2], *_TEXTS))


_MUTATIONS: Sequence[Callable[[Chance, Draft, Seeds], None]] = (
    *(_other_type, _other_type, _other_type, _other_values, _other_alpha, _other_alpha),
    *(_other_shape, _other_shape, _other_shape, _other_shape),
    *(_other_end, _other_end, _other_start, _strange_name, _other_number),
    *(_missing, _missing, _swapped, _turned_round, _mixed, _mixed, _extra, _empty, _container),
    *(_other_metadata, _other_config),
)
