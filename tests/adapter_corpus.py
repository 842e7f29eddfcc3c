"""Small LoRA files of every kind, dialect and family, and tiny checkpoints that they fit.

Each file has about ten layers of a few numbers: what reads and changes them is tried thousands of times over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.adapter_kinds import ADAPTERS
from loraloom.formats.dialects import DIFFUSERS_OLD, KOHYA
from loraloom.formats.tensors import TensorInfo
from loraloom.models.family import FAMILIES, Family

__all__ = ["Draft", "checkpoint_of", "drafts", "targets_of"]

RANK, ALPHA = 3, 1.3
CHANNELS, TEXT_WIDTH = 8, 16


@dataclass
class Draft:
    """A LoRA file before it is written: what is in it, and what lies beside it."""

    family: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    suffix: str = ".safetensors"
    """``.pt`` is written as ``torch.save`` writes it."""
    listed: bool = False
    """Whether a ``.pt`` is a list of tensors, as cloneofsimo's are."""
    whole_model: bool = False
    """Whether its checkpoint must have every layer; else one with a layer of each sort will do."""
    config: str | None = None
    """The text of ``adapter_config.json`` beside it; the file is then PEFT's ``adapter_model``."""

    def copy(self) -> Draft:
        """Another draft with the same tensors."""
        return replace(self, tensors=dict(self.tensors), metadata=dict(self.metadata))


# ------------------------------------------------------------------------------------------------ checkpoints


@cache
def _whole_checkpoint(family: str) -> Mapping[str, Tensor]:
    """The layout of the real files eight channels wide, without a VAE and with four words."""
    made: Family = FAMILIES.load(family)()
    tensors = made.toy(channels=CHANNELS, text_width=TEXT_WIDTH, text_layers=3, vae_channels=CHANNELS)
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(made.vae_prefix)}
    return {key: tensor[:4].clone() if "token_embedding" in key else tensor for key, tensor in kept.items()}


def _targets(family: str, tensors: Mapping[str, Tensor]) -> tuple[AdapterTarget, ...]:
    infos = {key: TensorInfo(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    return tuple(FAMILIES.load(family)().file_targets(infos))


_WANTED = (
    ("unet", ("attn1_to_q",)),
    ("unet", ("attn2_to_k",)),
    ("unet", ("ff_net_0_proj",)),
    ("unet", ("proj_in",)),
    ("unet", ("resnets_0_conv1", "in_layers_2")),
    ("unet", ("time_emb_proj", "emb_layers_1")),
    ("unet", ("conv_in", "input_blocks_0_0")),
    ("unet", ("_norm2",)),
    ("text_encoder", ("self_attn_q_proj",)),
    ("text_encoder", ("self_attn_v_proj",)),
    ("text_encoder", ("mlp_fc1",)),
    ("text_encoder", ("layer_norm1",)),
    ("text_encoder_2", ("self_attn_k_proj",)),
    ("text_encoder_2", ("mlp_fc2",)),
)
"""One layer of each sort: part, and how its name ends."""


@cache
def _chosen(family: str) -> tuple[AdapterTarget, ...]:
    found = []
    targets = _targets(family, _whole_checkpoint(family))
    for part, endings in _WANTED:
        fitting = (t for t in targets if t.part == part and t.name.endswith(endings))
        found += [target for target in [next(fitting, None)] if target is not None]
    return tuple(found)


@cache
def checkpoint_of(family: str, *, whole: bool = False) -> Mapping[str, Tensor]:
    """A tiny checkpoint of the family: all layers, or those that the drafts change and what tells the family."""
    tensors = _whole_checkpoint(family)
    if whole:
        return tensors
    kept = {name for target in _chosen(family) for name in (target.tensor, target.bias)}
    return {key: tensor for key, tensor in tensors.items() if key in kept or key.endswith(_SIGNS)}


_SIGNS = ("token_embedding.weight", "input_blocks.0.0.weight", "label_emb.0.0.weight", "attn2.to_k.weight")
_SIGNS += (
    "in_layers.0.bias",
    "norm.bias",
    "op.bias",
    "conv.bias",
    "layers.2.layer_norm1.bias",
    "resblocks.2.ln_1.bias",
)
"""Ends of what tells the family of a checkpoint, and how its blocks are counted."""


@cache
def targets_of(family: str, *, whole: bool = False) -> tuple[AdapterTarget, ...]:
    """Every layer of that checkpoint that a LoRA file may change."""
    return _targets(family, checkpoint_of(family, whole=whole))


# ------------------------------------------------------------------------------------------------ layers

Roles = dict[str, Tensor]


def _random(*shape: int, seed: str) -> Tensor:
    made = torch.Generator().manual_seed(sum(map(ord, seed)))
    return torch.randn(shape, generator=made) * 0.3


def _created(kind: str, target: AdapterTarget, **options: object) -> Roles:
    """The tensors of an adapter of ours with random values."""
    settings = AdapterSettings(kind=kind, **options)  # type: ignore[arg-type]
    weight = _weight_of(target)
    adapter = ADAPTERS.load(kind).create(target, settings, RANK, ALPHA, seed=1, base=weight)
    made = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=made)
    return {role: tensor.detach().clone() for role, tensor in adapter.tensors().items()}


def _weight_of(target: AdapterTarget) -> Tensor:
    """Random values in the shape of a layer."""
    return _random(*target.shape, seed=target.name)


def _lora(target: AdapterTarget) -> Roles:
    return _created("lora", target)


def _tucker(target: AdapterTarget) -> Roles:
    if target.kind != "conv3x3":
        return _lora(target)
    outputs, inputs, *kernel = target.shape
    shapes = {"down": (RANK, inputs, 1, 1), "mid": (RANK, RANK, *kernel), "up": (outputs, RANK, 1, 1)}
    return {role: _random(*shape, seed=role) for role, shape in shapes.items()} | {"alpha": torch.tensor(ALPHA)}


def _loha(target: AdapterTarget) -> Roles:
    return _created("loha", target)


def _loha_tucker(target: AdapterTarget) -> Roles:
    if target.kind != "conv3x3":
        return _loha(target)
    outputs, inputs, *kernel = target.shape
    made = {"alpha": torch.tensor(ALPHA)}
    for half in ("1", "2"):
        made[f"hada_w{half}_a"] = _random(RANK, outputs, seed=half + "a")
        made[f"hada_w{half}_b"] = _random(RANK, inputs, seed=half + "b")
        made[f"hada_t{half}"] = _random(RANK, RANK, *kernel, seed=half + "t")
    return made


def _lokr_tucker(target: AdapterTarget) -> Roles:
    outputs, inputs, *kernel = target.shape
    if target.kind != "conv3x3" or outputs % 2 or inputs % 2:
        return _created("lokr", target)
    return {
        "lokr_w1": _random(2, 2, seed="w1"),
        "lokr_w2_a": _random(RANK, outputs // 2, seed="w2a"),
        "lokr_w2_b": _random(RANK, inputs // 2, seed="w2b"),
        "lokr_t2": _random(RANK, RANK, *kernel, seed="t2"),
        "alpha": torch.tensor(ALPHA),
    }


def _lokr_whole(target: AdapterTarget) -> Roles:
    outputs, inputs, *kernel = target.shape
    first = (2 if outputs % 2 == 0 else 1, 2 if inputs % 2 == 0 else 1)
    second = (outputs // first[0], inputs // first[1], *kernel)
    return {"lokr_w1": _random(*first, seed="w1"), "lokr_w2": _random(*second, seed="w2"), "alpha": torch.tensor(ALPHA)}


_KINDS: Mapping[str, Callable[[AdapterTarget], Roles]] = {
    "lora": _lora,
    "tucker": _tucker,
    "dora of rows": lambda target: _created("dora", target, dora_axis="output"),
    "dora of columns": lambda target: _created("dora", target, dora_axis="input"),
    "loha": _loha,
    "loha tucker": _loha_tucker,
    "lokr": lambda target: _created("lokr", target),
    "lokr whole": _lokr_whole,
    "lokr tucker": _lokr_tucker,
    "ia3": lambda target: _created("ia3", target),
    "full": lambda target: _created("full", target),
}


def _norm(target: AdapterTarget) -> Roles:
    return {"w_norm": _random(*target.shape, seed="w"), "b_norm": _random(*target.shape, seed="b")}


def _layers(family: str, kind: str) -> Iterator[tuple[AdapterTarget, Roles]]:
    for target in _chosen(family):
        yield target, _norm(target) if target.kind == "norm" else _KINDS[kind](target)


# ------------------------------------------------------------------------------------------------ dialects

Spelling = Callable[[AdapterTarget, str], str | None]
"""The key of a role on a layer; None where the dialect has none."""


def _kohya(target: AdapterTarget, role: str) -> str:
    return target.name + KOHYA.suffix(role)


def _kohya_other(target: AdapterTarget, role: str) -> str:
    """The names that the family's files usually do not have: the checkpoint's where diffusers' are usual."""
    return (target.aliases or (target.name,))[0] + KOHYA.suffix(role)


def _dotted(start: str, down: str, up: str) -> Spelling:
    def spelled(target: AdapterTarget, role: str) -> str | None:
        ends = {"down": down, "up": up, "dora_scale": ".lora_magnitude_vector.weight"}
        end = ends.get(role, f".{role}" if role.startswith(("hada_", "lokr_")) else None)
        return None if end is None else f"{start.format(part=target.part)}{target.diffusers_name}{end}"

    return spelled


def _diffusers_old(target: AdapterTarget, role: str) -> str | None:
    path = f"{target.part}.{target.diffusers_name}"
    for suffix, known in DIFFUSERS_OLD.roles.items():
        ending = DIFFUSERS_OLD.endings.get(suffix, "")
        if known == role and ending and path.endswith(ending):
            return path.removesuffix(ending) + suffix
    return next((path + s for s, known in DIFFUSERS_OLD.roles.items() if known == role and s.startswith(".lora")), None)


_COMFY_TEXT = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def _comfy(target: AdapterTarget, role: str) -> str:
    if target.part == "unet":
        return f"diffusion_model.{target.module}{KOHYA.suffix(role)}"
    return f"text_encoders.{_COMFY_TEXT[target.part]}.transformer.{target.diffusers_name}{KOHYA.suffix(role)}"


_SPELLINGS: Mapping[str, Spelling] = {
    "kohya": _kohya,
    "kohya, other names": _kohya_other,
    "peft": _dotted("{part}.", ".lora_A.weight", ".lora_B.weight"),
    "peft, default": _dotted("{part}.", ".lora_A.default.weight", ".lora_B.default.weight"),
    "peft, named": _dotted("{part}.", ".lora_A.my_style.weight", ".lora_B.my_style.weight"),
    "peft, wrapped": _dotted("{part}.base_model.model.", ".lora_A.weight", ".lora_B.weight"),
    "peft, bare": _dotted("base_model.model.", ".lora_A.weight", ".lora_B.weight"),
    "diffusers": _dotted("{part}.", ".lora.down.weight", ".lora.up.weight"),
    "diffusers, old": _diffusers_old,
    "comfy": _comfy,
}
_LORA_ONLY = ("diffusers", "diffusers, old", "peft, default", "peft, named", "peft, wrapped", "peft, bare")


def _draft(family: str, kind: str, spelling: str) -> Draft:
    tensors = {}
    for target, roles in _layers(family, kind):
        for role, tensor in roles.items():
            key = _SPELLINGS[spelling](target, role)
            if key is not None and not (spelling == "peft, bare" and target.part != "unet"):
                tensors[key] = tensor
    return Draft(family, tensors, _metadata(family, spelling))


def _metadata(family: str, spelling: str) -> dict[str, str]:
    if spelling.startswith("kohya"):
        made: Family = FAMILIES.load(family)()
        return {
            "ss_base_model_version": made.base_model_version,
            "ss_network_dim": str(RANK),
            "ss_network_alpha": str(ALPHA),
            "ss_tag_frequency": json.dumps({"3_x": {"red dog": 4, "sky": 2}}),
            "modelspec.title": "Toy",
            "modelspec.trigger_phrase": "tok dog",
        }
    if spelling == "peft":
        return {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in _CONFIG.items()})}
    return {}


_CONFIG = {
    "r": RANK,
    "lora_alpha": ALPHA,
    "alpha": ALPHA,
    "rank_pattern": {"attn1.to_q": 2},
    "alpha_pattern": {"attn1.to_q": 0.7, r".*\.proj_in": 2.5},
    "use_rslora": False,
    "peft_type": "LORA",
    "target_modules": ["to_q", "to_k"],
}


@cache
def drafts() -> Mapping[str, Draft]:
    """Every seed by what it is; to be copied before it is changed."""
    made = {}
    for family in sorted(FAMILIES):
        for kind in _KINDS:
            made[f"{family}, {kind}, kohya"] = _draft(family, kind, "kohya")
        for spelling in _SPELLINGS:
            made[f"{family}, lora, {spelling}"] = _draft(family, "lora", spelling)
            if spelling not in _LORA_ONLY:
                made[f"{family}, lokr whole, {spelling}"] = _draft(family, "lokr whole", spelling)
                made[f"{family}, loha, {spelling}"] = _draft(family, "loha", spelling)
                made[f"{family}, dora, {spelling}"] = _draft(family, "dora of rows", spelling)
        made[f"{family}, real widths"] = _real_widths(family)
        bare = _draft(family, "lora", "peft, bare")
        made[f"{family}, peft folder"] = replace(bare, config=json.dumps(_CONFIG))
        made[f"{family}, mixed spellings"] = _mixed(family)
        with_words = _draft(family, "lora", "kohya")
        places = ("clip_l", "clip_g") if family == "sdxl" else ("string_to_param.*",)
        with_words.tensors |= {f"bundle_emb.tok.{place}": _random(2, TEXT_WIDTH, seed=place) for place in places}
        made[f"{family}, words"] = with_words
    made["sd1, lora, kohya, half"] = _cast(_draft("sd1", "lora", "kohya"), torch.float16)
    made["sdxl, lora, kohya, fp8"] = _cast(_draft("sdxl", "lora", "kohya"), torch.float8_e4m3fn)
    made["sd1, lora, kohya, .pt"] = replace(_draft("sd1", "lora", "kohya"), suffix=".pt")
    made["cloneofsimo, text list"] = _numbered_text(listed=True)
    made["cloneofsimo, text keys"] = _numbered_text(listed=False)
    made["cloneofsimo, unet keys"] = _numbered_unet()
    return made


def _mixed(family: str) -> Draft:
    """One layer in each spelling, as diffusers mixes them."""
    whole = {spelling: _draft(family, "lora", spelling).tensors for spelling in ("peft", "diffusers, old", "kohya")}
    tensors = {key: t for key, t in whole["peft"].items() if key.startswith("unet.") and "attn" not in key}
    tensors |= {key: t for key, t in whole["diffusers, old"].items() if "attn" in key}
    tensors |= {key: t for key, t in whole["kohya"].items() if "mlp" in key}
    return Draft(family, tensors)


def _real_widths(family: str) -> Draft:
    """Two layers as large as those of the real models: the family is seen from them."""
    tensors = {}
    fitting = (t for t in FAMILIES.load(family)().all_targets() if t.name.endswith("attn2_to_k"))
    for target in (next(fitting), next(fitting)):
        tensors[_kohya(target, "down")] = _random(1, target.shape[1], seed="down").half()
        tensors[_kohya(target, "up")] = _random(target.shape[0], 1, seed="up").half()
    return Draft(family, tensors)


def _cast(draft: Draft, dtype: torch.dtype) -> Draft:
    return replace(draft, tensors={key: tensor.to(dtype) for key, tensor in draft.tensors.items()})


def _numbered_text(*, listed: bool) -> Draft:
    pairs = [(_random(16, 2, seed=f"u{n}"), _random(2, 16, seed=f"d{n}")) for n in range(12)]
    names = [("text_encoder:{}:up", "text_encoder:{}:down"), ("{}", "{}")][listed]
    tensors = {}
    for number, (up, down) in enumerate(pairs):
        ups, downs = (2 * number, 2 * number + 1) if listed else (number, number)
        tensors[names[0].format(ups)] = up
        tensors[names[1].format(downs)] = down
    return Draft("sd1", tensors, {}, ".pt" if listed else ".safetensors", listed=listed, whole_model=True)


def _numbered_unet() -> Draft:
    """128 layers in cloneofsimo's order: 16 transformers of attention and the first feed-forward layer."""
    tensors = {"<tok>": _random(TEXT_WIDTH, seed="tok")}
    widths = [width for width, count in ((8, 2), (16, 4), (16, 6), (8, 3), (16, 1)) for _ in range(count)]
    layers = []
    for width in widths:
        layers += [(width, width)] * 4 + [(8 * width, width)] + [(width, w) for w in (width, 16, 16, width)]
    for number, (outputs, inputs) in enumerate(layers):
        tensors[f"unet:{number}:up"] = _random(outputs, 1, seed=f"u{number}")
        tensors[f"unet:{number}:down"] = _random(1, inputs, seed=f"d{number}")
    return Draft("sd1", tensors, {"<tok>": "<embed>"}, whole_model=True)
