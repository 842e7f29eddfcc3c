"""What any model file is, concluded from names, shapes and metadata: a checkpoint of some family, a LoRA, something
else."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraloom.actions import Action, Sentence
from loraloom.control import Control, keep_going
from loraloom.errors import AdapterError, FileFormatError, LoraloomError
from loraloom.formats.adapter_checks import doubts_about, foreign_kinds, widened
from loraloom.formats.adapter_file import content_hash, read_adapter_file
from loraloom.formats.adapter_kinds import rank_of, title_of
from loraloom.formats.cloneofsimo import companions
from loraloom.formats.dialects import CLONEOFSIMO, PEFT, part_of_layer
from loraloom.formats.entries import show
from loraloom.formats.files import old_hash, sha256_of
from loraloom.formats.foreign import what_it_is
from loraloom.formats.image_programs import read_image
from loraloom.formats.image_texts import is_image
from loraloom.formats.lora_family import family_of_layers
from loraloom.formats.lora_keys import LoraKeys, lora_keys
from loraloom.formats.peft_config import PeftScale, peft_scales
from loraloom.formats.tensors import TensorFile, TensorInfo, open_tensors
from loraloom.models.checkpoint import Checkpoint, as_checkpoint, open_checkpoint
from loraloom.models.parts import part_problems
from loraloom.models.prediction import read_signs
from loraloom.plain_data import size_text
from loraloom.weights.anatomy import EXPLODED, Anatomy, State, dissect
from loraloom.weights.identify import tag_counts
from loraloom.weights.merge import MERGED_KEY

__all__ = ["FileReport", "inspect_file"]

Infos = Mapping[str, TensorInfo]

_CONTAINERS = {
    "safetensors": "safetensors",
    "zip": "torch zip (.ckpt, .pt)",
    "legacy": "torch before 1.6 (.ckpt, .pt)",
}
_TAGS_SHOWN = 12
_RECIPE: tuple[tuple[str, str], ...] = (
    ("modelspec.title", "title"),
    ("modelspec.trigger_phrase", "trigger words"),
    ("ss_sd_model_name", "trained on"),
    ("ss_num_train_images", "images, with repeats"),
    ("ss_epoch", "epochs"),
    ("ss_steps", "steps"),
    ("ss_total_batch_size", "batch size"),
    ("ss_learning_rate", "learning rate"),
    ("ss_unet_lr", "U-Net learning rate"),
    ("ss_text_encoder_lr", "text encoder rate"),
    ("ss_lr_scheduler", "lr schedule"),
    ("ss_optimizer", "optimizer"),
    ("ss_resolution", "resolution"),
    ("ss_clip_skip", "clip skip"),
    ("ss_seed", "seed"),
    ("ss_training_comment", "comment"),
)


@dataclass(frozen=True)
class FileReport:
    """``kind``: checkpoint, LoRA, image or other; ``facts`` in reading order; ``metadata`` as stored.

    ``anatomy``: of a LoRA whose layers were asked for.
    """

    path: Path
    kind: str
    title: str
    facts: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    anatomy: Anatomy | None = None


def inspect_file(
    path: Path, *, hashes: bool = False, layers: bool = False, control: Control = keep_going
) -> FileReport:
    """Find out what a file (or a Diffusers folder) is. Of tensors only the alphas of a LoRA are read.

    ``hashes`` reads the whole file for the hashes by which other programs know it, and compares them with those it
    carries; ``layers`` reads all of a LoRA and measures its layers. Of an image, the generation parameters are read.
    ``control`` is heeded between two pieces of a file that is read whole, and between two layers.
    Raises FileError for a file that cannot be read at all, CheckpointError for a folder of another pipeline.
    """
    if path.is_dir():
        return _checkpoint_report(open_checkpoint(path), _folder_facts(path))
    if is_image(path):
        return _image_report(path)
    with open_tensors(path) as tensors:
        infos = {name: tensors.info(name) for name in tensors}
        facts = _file_facts(tensors, infos) | (_damage(tensors, control) if hashes else {})
        keys = lora_keys(infos, tensors.metadata)

        if (checkpoint := as_checkpoint(path, tensors)) is not None:
            digest = {"hash": f"{sha256_of(path, control)[:10]} (AutoV2)"} if hashes else {}
            if hashes:
                digest["old hash"] = f"{old_hash(path)} (web UI before 2023, sd-scripts' ss_sd_model_hash)"
            return _checkpoint_report(checkpoint, facts | digest)

        if keys is not None:
            report = _lora_report(tensors, infos, keys, facts | _lora_hash(tensors, compute=hashes, control=control))
            # Anatomy multiplies factors, which those of a file that cannot be used do not allow.
            is_measured = layers and "cannot be used" not in report.facts
            return _with_anatomy(report, control) if is_measured else report

        return FileReport(path, "other", what_it_is(infos), facts, tensors.metadata)


# ------------------------------------------------------------------------------------------------ any file


def _image_report(path: Path) -> FileReport:
    found = read_image(path)
    if found is None:
        return FileReport(path, "image", "an image without generation parameters", {})
    facts = {"program": found.program} if found.program else {}
    facts |= {"prompt": found.prompt, **({"negative prompt": found.negative_prompt} if found.negative_prompt else {})}
    behind = {"after the settings": found.rest} if found.rest else {}
    remarks = {"remarks": "; ".join(found.remarks)} if found.remarks else {}
    facts |= {**found.fields, **behind, **remarks}
    return FileReport(path, "image", "an image with generation parameters", facts)


def _file_facts(tensors: TensorFile, infos: Infos) -> dict[str, str]:
    size = tensors.path.stat().st_size
    return {"container": f"{_CONTAINERS.get(tensors.kind, tensors.kind)}, {size_text(size)}", "in all": _amount(infos)}


def _damage(tensors: TensorFile, control: Control) -> dict[str, str]:
    """What the checksums that the file carries say against its content, which has to be read for them."""
    try:
        tensors.check_all(control)
    except FileFormatError as error:
        return {"damaged": error.problem}
    return {}


def _folder_facts(path: Path) -> dict[str, str]:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"container": f"Diffusers folder, {size_text(size)}"}


def _amount(infos: Infos) -> str:
    """Number of tensors, values and types: ``686 tensors, 859.52 M values, float16``."""
    values = sum(info.numel for info in infos.values())
    types = Counter(str(info.dtype).removeprefix("torch.") for info in infos.values())
    told = ", ".join(f"{name} {count:,}" for name, count in types.most_common()) if len(types) > 1 else "".join(types)
    return f"{_counted(len(infos), 'tensor')}, {values / 1e6:,.2f} M values, {told}"


# ------------------------------------------------------------------------------------------------ checkpoints


def _checkpoint_report(checkpoint: Checkpoint, facts: Mapping[str, str]) -> FileReport:
    family, infos = checkpoint.family, checkpoint.infos
    targets = family.adapter_targets(infos)
    default = sum(not target.extended for target in targets)
    facts = {
        "family": family.title,
        "prediction": _prediction(checkpoint),
        **_resolution(checkpoint),
        **_parts(checkpoint, infos),
        **facts,
        **_usability(checkpoint),
        "layers for LoRA": f"{default}, and {len(targets) - default} more with a convolution rank",
        **_history(checkpoint),
    }
    return FileReport(
        checkpoint.path, "checkpoint", f"{checkpoint.purpose}, {family.title}", facts, checkpoint.metadata
    )


def _usability(checkpoint: Checkpoint) -> dict[str, str]:
    """Names that were translated, and what keeps the checkpoint from being trained on and from painting."""
    told = {}
    if names := checkpoint.translated:
        told["other names"] = f"{_counted(len(names), 'tensor')} under names of other programs, the first is {names[0]}"
    if problems := part_problems(checkpoint):
        told["cannot be used"] = "; ".join(problems)
    return told


def _prediction(checkpoint: Checkpoint) -> str:
    """What the file says, without running the model."""
    signs = read_signs(checkpoint, checkpoint.metadata, checkpoint.path)
    if signs.prediction is not None:
        told = f"{signs.prediction} (from {signs.source})"
    elif checkpoint.family.probes_prediction:
        told = "not in the file; found by trying the U-Net when the checkpoint is used"
    else:
        told = f"epsilon (as usual for {checkpoint.family.title}; the file says nothing else)"
    return told + (", zero terminal SNR" if signs.zero_terminal_snr else "")


def _resolution(checkpoint: Checkpoint) -> dict[str, str]:
    own = checkpoint.own_resolution(read_signs(checkpoint, checkpoint.metadata, checkpoint.path).prediction)
    if own.remark:
        return {"resolution": f"{own}, the family's ({own.remark})"}
    return {"resolution": f"{own} (the file's own)"} if own.is_said else {}


def _parts(checkpoint: Checkpoint, infos: Infos) -> dict[str, str]:
    """Every part the family has, with its size and type or that it is missing; then whatever else is in the file."""
    family = checkpoint.family
    prefixes = {"U-Net": family.unet_prefix, "VAE": family.vae_prefix}
    told: dict[str, str] = {}
    for part in family.text_parts:
        prefix = part.prefix(checkpoint)
        if prefix is None:
            told[part.part.replace("_", " ")] = "missing"
        else:
            prefixes[part.part.replace("_", " ")] = prefix

    grouped: dict[str, dict[str, TensorInfo]] = {label: {} for label in (*prefixes, "EMA weights", "other")}
    for name, info in infos.items():
        grouped[_part_of(name, prefixes)][name] = info
    for label, members in grouped.items():
        if members:
            told[label] = _amount(members)
        # That a part is not there is what people look for, so it has a line of its own.
        elif label in prefixes:
            told[label] = "missing"

    order = ["U-Net", "VAE", *(part.part.replace("_", " ") for part in family.text_parts), "EMA weights", "other"]
    return {label: told[label] for label in order if label in told}


def _part_of(name: str, prefixes: Mapping[str, str]) -> str:
    if name.startswith("model_ema."):
        return "EMA weights"
    return next((label for label, prefix in prefixes.items() if name.startswith(prefix)), "other")


def _history(checkpoint: Checkpoint) -> dict[str, str]:
    """How the checkpoint came to be, as far as its metadata says."""
    told = {
        label: str(checkpoint.extras[key])
        for key, label in (("epoch", "epoch"), ("global_step", "step"))
        if key in checkpoint.extras
    }
    if title := checkpoint.metadata.get("modelspec.title"):
        told["title"] = title
    if merged := checkpoint.metadata.get("modelspec.merged_from"):
        told["merged from"] = merged
    if count := _merged_loras(checkpoint.metadata):
        told["LoRAs in it"] = str(count)
    return told


def _merged_loras(metadata: Mapping[str, str]) -> int:
    try:
        merged = json.loads(metadata.get(MERGED_KEY, "[]"))
    except ValueError:
        return 0
    return len(merged) if isinstance(merged, list) else 0


# ------------------------------------------------------------------------------------------------ LoRAs

Layers = Mapping[str, Mapping[str, TensorInfo]]
"""Layer name in the file -> role -> type and shape."""


def _lora_report(tensors: TensorFile, infos: Infos, keys: LoraKeys, facts: Mapping[str, str]) -> FileReport:
    layers = {name: {role: infos[key] for role, key in roles.items()} for name, roles in keys.layers.items()}
    alphas = _alphas(tensors, infos, layers, keys)
    made_for = family_of_layers(layers, tensors.metadata)
    titles = [title_of(roles) for roles in layers.values()] or ["LoRA"]
    told = {
        "made for": made_for,
        "kind": _common(titles),
        "dialect": keys.title,
        "layers": f"{len(layers)} ({', '.join(f'{part} {count}' for part, count in _layers_of_parts(layers).items())})",
        "rank": _common(str(rank) for rank in _ranks(layers).values()) or "none",
        "alpha": _common(alphas.shown.values()) or "none",
        **facts,
        **_beside_the_layers(tensors.path, keys),
    }

    # One reason is enough not to use a file; what is merely odd about it is only worth telling of one that works.
    problem = keys.problem or _damaged_alpha(alphas) or alphas.misfit or _companion_problem(tensors.path, keys)
    told |= {"cannot be used": problem} if problem else _oddities(layers, alphas)
    told |= _recipe(tensors.metadata)
    kind = min(foreign_kinds(infos).values(), default=Counter(titles).most_common(1)[0][0])
    return FileReport(tensors.path, "LoRA", f"a {kind} for {made_for}", told, tensors.metadata)


@dataclass(frozen=True)
class _Alphas:
    """The alphas of a LoRA by layer: as numbers (``stored``, None for none), and of layers with a rank as ``shown``.

    ``misfit``: why PEFT's configuration, which has a say in them, cannot be used; empty where it can.
    """

    stored: Mapping[str, float | None]
    shown: Mapping[str, str]
    misfit: str


def _alphas(tensors: TensorFile, infos: Infos, layers: Layers, keys: LoraKeys) -> _Alphas:
    stored = {name: _stored_alpha(tensors, infos, keys.layers[name].get("alpha")) for name in layers}
    shown = {name: _alpha(stored[name], rank, keys.layers[name]) for name, rank in _ranks(layers).items()}

    # PEFT's configuration counts before the alphas in the file, as it does when the LoRA is used.
    scales, misfit = _peft_scales(tensors, layers, keys)
    configured = {name: scale.alpha for name, scale in scales.items() if scale.alpha is not None}
    shown |= {name: f"{alpha:g} (from PEFT's configuration)" for name, alpha in configured.items()}
    return _Alphas({**stored, **configured}, shown, misfit)


def _ranks(layers: Layers) -> dict[str, int]:
    """Of the layers that have one."""
    return {name: rank for name, roles in layers.items() if (rank := rank_of(roles)) is not None}


def _beside_the_layers(path: Path, keys: LoraKeys) -> dict[str, str]:
    """Words that came with the LoRA, and the other files that it is read with."""
    told = {}
    if keys.embeddings:
        told["words in it"] = ", ".join(keys.embeddings)
    if keys.dialect is CLONEOFSIMO and (others := companions(path)):
        told["read with it"] = ", ".join(other.name for other in others)
    return told


def _damaged_alpha(alphas: _Alphas) -> str:
    damaged = ((name, value) for name, value in alphas.stored.items() if value is not None and not math.isfinite(value))
    return next((f"the alpha of layer {name} is {value}" for name, value in damaged), "")


def _oddities(layers: Layers, alphas: _Alphas) -> dict[str, str]:
    """What is odd about a LoRA that can be used."""
    doubts = doubts_about(layers, alphas.stored.__getitem__)
    return {**_strangers(layers), **{doubt.what: doubt.sentence for doubt in doubts}}


def _recipe(metadata: Mapping[str, str]) -> dict[str, str]:
    """How the LoRA was trained, and the tags it was shown most often, as far as the metadata says."""
    told = {label: metadata[key] for key, label in _RECIPE if metadata.get(key, "None") != "None"}
    if tags := tag_counts(metadata).most_common(_TAGS_SHOWN):
        told["tags"] = ", ".join(f"{tag} ({count})" for tag, count in tags)
    return told


def _with_anatomy(report: FileReport, control: Control) -> FileReport:
    """The report with measured layers, and remarks on them."""
    anatomy = dissect(read_adapter_file(report.path), control=control)
    told: dict[str, str] = {}
    for state, what in _STATES.items():
        if names := [layer.name for layer in anatomy.in_state(state)]:
            told[state] = f"{_counted(len(names), 'layer')} {what}: {', '.join(names[:3])}{' ...' * (len(names) > 3)}"
    return replace(report, facts={**report.facts, **told}, anatomy=anatomy)


_STATES: Mapping[State, str] = {
    "dead": "that change nothing",
    "not finite": "with NaN or infinite values: the LoRA is broken",
    "exploded": f"more than {EXPLODED:g} times as strong as the median layer",
}


def _peft_scales(tensors: TensorFile, layers: Layers, keys: LoraKeys) -> tuple[Mapping[str, PeftScale], str]:
    """What PEFT's configuration says of the layers, and why it cannot be used if it cannot."""
    if keys.problem or PEFT not in keys.dialects:
        return {}, ""
    try:
        return peft_scales(tensors.path, layers, tensors.metadata), ""
    except AdapterError as error:
        return {}, error.problem


def _companion_problem(path: Path, keys: LoraKeys) -> str:
    """Why the files that belong to cloneofsimo's cannot be read with it; empty where they can, or there are none."""
    if keys.dialect is not CLONEOFSIMO or not companions(path):
        return ""
    try:
        read_adapter_file(path)
    except LoraloomError as error:
        return error.problem
    return ""


def _stored_alpha(tensors: TensorFile, infos: Infos, key: str | None) -> float | None:
    """The alpha in the file; None where there is none, or none that is a number (which is a problem of the file)."""
    if key is None or infos[key].numel != 1 or infos[key].dtype.is_complex:
        return None
    return float(widened(tensors[key]))


def _alpha(stored: float | None, rank: int, keys: Mapping[str, str]) -> str:
    """The alpha of a layer as it acts: without one it equals the rank."""
    if stored is None:
        return "damaged" if "alpha" in keys else f"{rank:g} (not in the file: equal to the rank)"
    return f"{stored:g}" if math.isfinite(stored) else "damaged"


def _common(values: Iterable[str]) -> str:
    """``16``, or ``16 (192 layers), 8 (72 layers)`` where layers differ; the most common first."""
    counts = Counter(values).most_common()
    return (
        counts[0][0]
        if len(counts) == 1
        else ", ".join(f"{value} ({_counted(count, 'layer')})" for value, count in counts)
    )


def _strangers(layers: Layers) -> dict[str, str]:
    """What to say of layers whose names are in no model: every checkpoint refuses them."""
    strange = [name for name in layers if not part_of_layer(name)]
    if not strange:
        return {}
    several = f"{len(strange)} of {len(layers)} layers have names that are in no model which is known here"
    return {"no such layers": f"{several}, the first is {show(strange[0])}: no checkpoint takes this LoRA"}


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _layers_of_parts(layers: Layers) -> dict[str, int]:
    counts = Counter(part_of_layer(name) for name in layers)
    return {title: counts[part] for part, title in _PART_TITLES.items() if counts[part]}


_PART_TITLES: Mapping[str, str] = {
    "unet": "U-Net",
    "text_encoder_2": "text encoder 2",
    "text_encoder": "text encoder",
    "": "unknown part",
}


def _lora_hash(tensors: TensorFile, *, compute: bool, control: Control) -> dict[str, str]:
    """The hash that the web UI shows, from the metadata; computed from the content when asked for."""
    stored = tensors.metadata.get("sshs_model_hash", "")
    if not compute:
        said = Sentence(
            f"{stored[:12]} (as the file says; ",
            Action.HASH_FILE.of(file=tensors.path),
            " compares it with the content)",
        )
        return {"hash": said} if stored else {}
    told = {"file hash": f"{sha256_of(tensors.path, control)[:10]} (AutoV2)"}
    if legacy := tensors.metadata.get("sshs_legacy_hash"):
        told["old hash"] = f"{legacy[:8]} (sshs_legacy_hash, as the file says)"
    computed = content_hash(tensors.path, control)
    if not stored:
        return {"hash": f"{computed[:12]} (AutoV3)", **told}
    if stored == computed:
        return {"hash": f"{computed[:12]} (AutoV3; agrees with the metadata)", **told}
    doubt = f"the metadata says {stored[:12]}: damaged or edited, or hashed before it was rounded"
    return {"hash": f"{computed[:12]} (AutoV3; {doubt})", **told}
