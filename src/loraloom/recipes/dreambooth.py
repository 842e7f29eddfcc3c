"""concepts_list.json and db_config.json of sd_dreambooth_extension, and the short form of DreamBooth scripts.

Both the names of January 2023 and those of later versions are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraloom.errors import LoraloomError
from loraloom.plain_data import finite, shown
from loraloom.recipes.names import unknown
from loraloom.recipes.parsing import parse_json, read_document
from loraloom.recipes.recipe import Item, Items, Mapped, Recipe, exists, is_nothing, resolved
from loraloom.recipes.sd_scripts import take_arguments

__all__ = ["CONFIG_NAMES", "CONFIG_REASONS", "is_concepts_list", "is_db_config", "take_concepts", "take_db_config"]

_CONFIG_MARKS = {
    "concepts_list",
    "num_train_epochs",
    "lora_learning_rate",
    "save_embedding_every",
    "stop_text_encoder",
    "use_lora",
    "lifetime_revision",
    "pretrained_vae_name_or_path",
}
_WORD = "[filewords]"

CONFIG_NAMES = {
    "num_train_epochs": "max_train_epochs",
    "train_batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
    "resolution": "resolution",
    "hflip": "flip_aug",
    "mixed_precision": "mixed_precision",
    "clip_skip": "clip_skip",
    "max_token_length": "max_token_length",
    "shuffle_tags": "shuffle_caption",
    "lr_scheduler": "lr_scheduler",
    "lr_warmup_steps": "lr_warmup_steps",
    "lr_cycles": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "lora_learning_rate": "unet_lr",
    "lora_txt_learning_rate": "text_encoder_lr",
    "lora_rank": "network_dim",
    "lora_unet_rank": "network_dim",
    "optimizer": "optimizer_type",
    "use_8bit_adam": "use_8bit_adam",
    "offset_noise": "noise_offset",
    "min_snr_gamma": "min_snr_gamma",
    "prior_loss_weight": "prior_loss_weight",
    "v2": "v2",
    "pretrained_vae_name_or_path": "vae",
    "save_embedding_every": "save_every_n_epochs",
    "save_preview_every": "sample_every_n_epochs",
}
"""Keys of db_config.json that are sd-scripts' under another name."""

_STATE = "a count or a place of that model, not a setting"
_FULL = "for training the whole model (use_lora off); this recipe trains a LoRA"
_CKPT = "training a LoRA writes a LoRA file; loraloom merge makes a checkpoint of it"
_ALWAYS = "what was trained is always written at the end and when a run is stopped; see saving.every_epochs"
_STRENGTH = "the strength of a LoRA is chosen when it is used or merged"
CONFIG_REASONS = {
    "model_name": "",
    "model_dir": _STATE,
    "model_path": _STATE,
    "model_type": "detected from the checkpoint",
    "revision": _STATE,
    "lifetime_revision": _STATE,
    "initial_revision": _STATE,
    "total_steps": _STATE,
    "epoch": _STATE,
    "has_ema": _STATE,
    "snapshot": "a run goes on from its own folder: loraloom train --resume RUN",
    "use_concepts": "see concepts_path",
    "learning_rate": _FULL,
    "txt_learning_rate": _FULL,
    "train_unfrozen": "all layers of the chosen parts are trained with method=full",
    "half_model": _CKPT,
    "custom_model_name": "see name",
    "use_subdir": "every run has a folder of its own",
    "save_safetensors": "LoRA files are safetensors unless saving.format says otherwise",
    "save_ckpt_after": _ALWAYS,
    "save_ckpt_cancel": _ALWAYS,
    "save_ckpt_during": _ALWAYS,
    "save_lora_after": "a LoRA file is always written at the end",
    "save_lora_cancel": "a LoRA file is always written when a run is stopped",
    "save_lora_during": "see saving.every_epochs",
    "save_lora_for_extra_net": "LoRA files are always in the form that the web UI reads",
    "save_ema": "see [ema]",
    "lora_weight": _STRENGTH,
    "lora_txt_weight": _STRENGTH,
    "lora_use_buggy_requires_grad": "a fault of that program",
    "lora_txt_rank": "settings of adapters cannot say it: one rank, adapter.rank, holds for U-Net and text encoder",
    "attention": "not needed: attention is PyTorch's memory-efficient one",
    "cache_latents": "always done",
    "gradient_set_to_none": "always done",
    "pad_tokens": "captions are always padded, as programs that use the LoRA do",
    "strict_tokens": "captions are used as they are",
    "sample_batch_size": "regularization images are made before training: loraloom dataset class-images",
    "graph_smoothing": "only the look of a graph",
    "epoch_pause_frequency": "training does not pause between epochs",
    "epoch_pause_time": "training does not pause between epochs",
    "lr_factor": "the starting factor of constant and linear is not offered",
    "lr_scale_pos": "the point at which constant changes is not offered",
    "learning_rate_min": "see lr_schedule.min_lr_ratio",
    "prior_loss_target": "see objective.prior_loss_steps",
    "prior_loss_weight_min": "see objective.prior_loss_min",
    "scheduler": "the sampler of previews is preview.sampler",
    "noise_scheduler": "noise is added as the checkpoint was trained (DDPM)",
    "deis_train_scheduler": "noise is added as the checkpoint was trained (DDPM)",
    "train_imagic": "Imagic is not offered",
    "use_lora_extended": "",
    "tomesd": "merging tokens is not offered",
    "use_dream": "DREAM is not offered",
    "dream_detail_preservation": "DREAM is not offered",
    "freeze_clip_normalization": "a LoRA leaves normalisation layers as they are",
    "freeze_spectral_norm": "not offered",
    "split_loss": "the loss is one number",
    "disable_class_matching": "regularization images are not matched with pictures",
    "disable_logging": "every run logs to its own folder",
    "deterministic": "runs of one seed are always identical",
    "dynamic_img_norm": "pictures are not stretched in contrast",
    "input_pertubation": "see objective.ip_noise_gamma",
    "tenc_grad_clip_norm": "see optimizer.max_grad_norm",
    "tenc_weight_decay": "one weight decay holds for all parts",
    "ema_predict": "see [ema]",
    "infer_ema": "see [ema]",
    "shared_diffusers_path": "checkpoints are used as they are",
    "use_shared_src": "checkpoints are used as they are",
    "tf32_enable": "not offered; mixed_precision=bf16 is faster than it",
    "full_mixed_precision": "what is trained stays in fp32 here; mixed_precision decides the rest",
    "save_class_txt": "regularization images are made before training: loraloom dataset class-images",
    "save_state_after": "see saving.state",
    "save_state_cancel": "see saving.state",
    "save_state_during": "see saving.state",
}
"""Why a key of db_config.json becomes no setting."""

_GENERATED = "regularization images are made before training: loraloom dataset class-images"
_CONCEPT_REASONS = {
    "class_negative_prompt": _GENERATED,
    "class_guidance_scale": _GENERATED,
    "class_infer_steps": _GENERATED,
    "num_class_images": _GENERATED,
    "num_class_images_per": _GENERATED,
    "save_sample_template": "a file of prompts is preview.file",
    "is_valid": "found out again",
    "max_steps": "a concept can end after a number of pictures shown: set its steps in the list of concepts",
    "file_prompt_contents": "captions come from the text files",
    "n_save_sample": "one preview per prompt: list a prompt twice for two",
}
_CONCEPT_DEFAULTS = {
    "n_save_sample": (1, "1"),
    "class_guidance_scale": (7.5, "7.5"),
    "class_infer_steps": (60, 40, "60", "40"),
    "sample_seed": (-1, "-1"),
}
_SCHEDULES = {"linear_with_warmup": "linear", "dadapt_with_warmup": "constant_with_warmup"}


def is_concepts_list(data: Any) -> bool:
    """Whether parsed JSON is a list of concepts."""
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(entry, Mapping) for entry in data)
        and any("instance_data_dir" in entry for entry in data)
    )


def is_db_config(data: Any) -> bool:
    """Whether parsed JSON is a db_config.json."""
    return isinstance(data, Mapping) and len({_bare(key) for key in data} & _CONFIG_MARKS) >= 2


def take_concepts(
    data: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    *,
    source: Path,
    prefix: str = "concepts",
    model_dir: str = "",
) -> None:
    """Translate concepts. Relative folders lie beside ``source``; ``model_dir`` is where the program kept the model."""
    concepts: list[dict[str, Any]] = []
    prompts: list[str] = []
    folders = (source.absolute().parent, Path.cwd())
    for number, entry in enumerate(data):
        painted = [place / f"classifiers_{number}" for place in (Path(model_dir), folders[0]) if str(place) != "."]
        _take_concept(f"{prefix}[{number}]", entry, recipe, concepts, prompts, folders, painted)
    dataset = recipe.settings.setdefault("dataset", {})
    dataset["concepts"] = [*(dataset.get("concepts") or []), *concepts]
    dataset.setdefault("caption_extensions", [".txt"])
    if prompts:
        recipe.settings.setdefault("preview", {})["prompts"] = prompts


def _take_concept(
    place: str,
    entry: Mapping[str, Any],
    recipe: Recipe,
    concepts: list[dict[str, Any]],
    prompts: list[str],
    folders: tuple[Path, ...],
    painted: list[Path],
) -> None:
    left = {_bare(key): (f"{place}.{key}", value) for key, value in entry.items()}
    values = {name: value for name, (_, value) in left.items()}

    def label(name: str) -> str:
        return left.pop(name)[0]

    def text(name: str) -> str:
        return "" if is_nothing(values.get(name)) else str(values[name]).strip()

    folder = text("instance_data_dir")
    if not folder:
        for key, value in left.values():
            if is_nothing(value):
                recipe.rest(key)
            else:
                recipe.skip(key, "the concept has no folder of pictures, so it is left out")
        return
    path = resolved(folder, folders)
    concept: dict[str, Any] = {"folder": path, "repeats": 1}
    recipe.mapped.append(Mapped(label("instance_data_dir"), "dataset.concepts[].folder", path))
    captions = _captions(values, left, recipe, instance=True)
    if _captions_are_file_names(Path(path)) and "sentence" not in captions:
        captions["source"] = "filename"
    if captions:
        concept["captions"] = captions
    concepts.append(concept)
    class_folder = resolved(text("class_data_dir"), folders) if text("class_data_dir") else ""
    key = left.pop("class_data_dir", (f"({place}.class_data_dir)", ""))[0]
    if class_folder:
        recipe.mapped.append(Mapped(key, "dataset.concepts[].folder", class_folder))
    elif _wanted(values):
        class_folder = next((str(folder) for folder in painted if exists(folder) and folder.is_dir()), "")
        command = _command(path, painted[-1], values, recipe)
        recipe.change(
            key,
            f"empty: {class_folder}, where that program paints them"
            if class_folder
            else f"empty, and no class images were found. Paint them, then import again: {command}",
        )
    elif not key.startswith("("):
        recipe.rest(key)
    if class_folder:
        regular: dict[str, Any] = {"folder": class_folder, "repeats": 1, "is_regularization": True}
        captions = _captions(values, left, recipe, instance=False)
        if captions:
            regular["captions"] = captions
        if all(other["folder"] != class_folder for other in concepts):
            concepts.append(regular)
    else:
        for name in ("class_prompt", "class_token"):
            if name in left and text(name):
                recipe.skip(label(name), "the concept has no folder of class images")
    _sample(values, left, recipe, prompts)
    for name, (key, value) in left.items():
        if is_nothing(value) or value in _CONCEPT_DEFAULTS.get(name, ()) or value in (0, "0", False):
            recipe.rest(key)
        elif name in _CONCEPT_REASONS:
            recipe.skip(key, _CONCEPT_REASONS[name])
        else:
            recipe.skip(key, unknown(name, _CONCEPT_REASONS))
            recipe.unknown.append(key)


def _wanted(values: Mapping[str, Any]) -> float:
    """Class images for each picture; 0 where the program uses none."""
    for name in ("num_class_images_per", "num_class_images"):
        number = finite(values.get(name))
        if number is not None:
            return number
    return 0.0


def _command(folder: str, output: Path, values: Mapping[str, Any], recipe: Recipe) -> str:
    """What paints the class images of a concept, as it is typed."""

    def text(name: str) -> str:
        return "" if is_nothing(values.get(name)) else str(values[name]).strip()

    words = ["loraloom", "dataset", "class-images", str(recipe.get("checkpoint") or "CHECKPOINT"), folder]
    words += [text("class_prompt") or text("class_token") or _WORD, "--output", str(output)]
    if text("instance_token"):
        words += ["--trigger", text("instance_token")]
    each = _wanted(values)
    if each != 1 and "num_class_images_per" in values:
        words += ["--count", str(round(each * _pictures_in(Path(folder)))) if exists(Path(folder)) else "COUNT"]
    elif "num_class_images_per" not in values:
        words += ["--count", str(round(each))]
    for name, ours in (
        ("class_negative_prompt", "negative_prompt"),
        ("class_guidance_scale", "cfg_scale"),
        ("class_infer_steps", "steps"),
    ):
        if text(name):
            words.append(f"{ours}={text(name)}")
    return " ".join(word if re.fullmatch(r"[\w.,:/\\=+-]+", word) else f'"{word}"' for word in words)


def _pictures_in(folder: Path) -> int:
    try:
        return sum(path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp") for path in folder.rglob("*"))
    except OSError:
        return 0


def _captions(
    values: Mapping[str, Any], left: dict[str, tuple[str, Any]], recipe: Recipe, *, instance: bool
) -> dict[str, Any]:
    """Prompt and token of a concept as caption settings."""
    which = "instance" if instance else "class"
    captions: dict[str, Any] = {}
    prompt = "" if is_nothing(values.get(f"{which}_prompt")) else str(values[f"{which}_prompt"]).strip()
    if prompt:
        key = left.pop(f"{which}_prompt")[0]
        if prompt == _WORD:
            recipe.mapped.append(Mapped(key, "dataset.concepts[].captions (from the files)", prompt))
        else:
            captions["sentence"] = prompt
            recipe.mapped.append(Mapped(key, "dataset.concepts[].captions.sentence", prompt))
    words = [str(values.get(f"{name}_token") or "").strip() for name in ("instance", "class")]
    if not instance or _WORD not in prompt:
        for name in ("instance_token", "class_token") if instance else ():
            if name in left and not is_nothing(values.get(name)):
                recipe.skip(left.pop(name)[0], "only [filewords] uses it")
        return captions
    if words[0]:
        captions["trigger"] = " ".join(word for word in words if word)
        note = f"put in front of captions that lack {shown(captions['trigger'])}; there it replaces the class word"
        recipe.change(left.pop("instance_token")[0], note)
        if words[1] and "class_token" in left:
            recipe.change(left.pop("class_token")[0], "part of the trigger")
    elif words[1]:
        recipe.skip(left.pop("class_token")[0], "without an instance token it changes nothing")
    return captions


def _captions_are_file_names(folder: Path) -> bool:
    """Whether a folder has pictures and not one text file: the file names are captions then."""
    try:
        names = [path.name.lower() for path in folder.iterdir()]
    except (OSError, ValueError):
        return False
    return bool(names) and not any(name.endswith((".txt", ".caption")) for name in names)


def _sample(values: Mapping[str, Any], left: dict[str, tuple[str, Any]], recipe: Recipe, prompts: list[str]) -> None:
    """The preview of a concept; its options go behind the prompt."""
    prompt = "" if is_nothing(values.get("save_sample_prompt")) else str(values["save_sample_prompt"]).strip()
    options = {
        "save_sample_negative_prompt": "n",
        "sample_seed": "d",
        "save_guidance_scale": "l",
        "save_infer_steps": "s",
    }
    if not prompt or _WORD in prompt:
        if prompt:
            recipe.skip(left.pop("save_sample_prompt")[0], "a random caption as the prompt: give preview.prompts")
        for name in options:
            if name in left and not is_nothing(values[name]):
                recipe.rest(left.pop(name)[0])
        return
    recipe.mapped.append(Mapped(left.pop("save_sample_prompt")[0], "preview.prompts", prompt))
    line = prompt
    for name, short in options.items():
        value = values.get(name)
        if name not in left or is_nothing(value):
            continue
        key = left.pop(name)[0]
        if name == "sample_seed" and str(value) == "-1":
            recipe.change(key, "previews always have the same seeds")
            continue
        line += f" --{short} {value}"
        recipe.mapped.append(Mapped(key, "preview.prompts", value))
    prompts.append(line)


def take_db_config(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate a db_config.json."""
    left = {_bare(key): Item(str(key), value) for key, value in data.items()}
    items: Items = {}
    use_lora = left.pop("use_lora", None)
    whole = use_lora is not None and use_lora.value is False
    if use_lora is not None and whole:
        recipe.set("method", "full", use_lora.key)
        _whole_model(left, items, recipe)
    elif use_lora is not None:
        recipe.mapped.append(Mapped(use_lora.key, "adapter.kind", "lora"))
        start = left.pop("lora_model_name", None)
        if start is not None:
            recipe.rest(start.key) if is_nothing(start.value) else recipe.set(
                "adapter.start_from", start.value, start.key
            )
    _model(left, recipe)
    _concepts(left, recipe)
    _rates_and_ends(left, items, recipe)
    for name, ours in CONFIG_NAMES.items():
        if name not in left:
            continue
        item = left.pop(name)
        if ours in items:
            recipe.skip(item.key, f"{items[ours].key} counts")
        else:
            items[ours] = item
    _regularization(left, recipe)
    if "lr_scheduler" in items:
        name = items["lr_scheduler"].value
        if isinstance(name, str):
            items["lr_scheduler"] = Item(items["lr_scheduler"].key, _SCHEDULES.get(name, name))
    if "center_crop" in left:
        item = left.pop("center_crop")
        recipe.set("dataset.buckets", not item.value, item.key)
    for name, item in left.items():
        if is_nothing(item.value) or item.value is False or str(item.value) in ("0", "0.0"):
            recipe.rest(item.key)
        elif CONFIG_REASONS.get(name):
            recipe.skip(item.key, CONFIG_REASONS[name])
        elif re.match(r"c\d_", name):
            recipe.rest(item.key)
        else:
            recipe.skip(item.key, unknown(name, {*CONFIG_REASONS, *CONFIG_NAMES}))
            recipe.unknown.append(item.key)
    take_arguments(items, recipe, defaults=False)
    if not whole:
        recipe.settings.setdefault("adapter", {}).setdefault("rank", 4)


def _bare(key: Any) -> str:
    return str(key).removeprefix("db_")


def _whole_model(left: dict[str, Item], items: Items, recipe: Recipe) -> None:
    """With use_lora off the rates for LoRA have no effect, and there are some for the model."""
    for name in [name for name in left if name.startswith(("lora_", "save_lora_"))]:
        recipe.rest(left.pop(name).key)
    for name, ours in (("learning_rate", "learning_rate"), ("txt_learning_rate", "text_encoder_lr")):
        if name in left:
            items[ours] = left.pop(name)
    half, ema = left.pop("half_model", None), left.pop("use_ema", None)
    if half is not None:
        recipe.set("saving.precision", "fp16" if half.value else "float", half.key)
    if ema is not None:
        recipe.set("ema.enabled", bool(ema.value), ema.key) if ema.value else recipe.rest(ema.key)
    kept = left.pop("save_safetensors", None)
    if kept is not None:
        recipe.rest(kept.key) if kept.value else recipe.set("saving.format", "ckpt", kept.key)


def _model(left: dict[str, Item], recipe: Recipe) -> None:
    name = left.pop("model_name", None)
    if name is not None:
        if is_nothing(name.value):
            recipe.rest(name.key)
        else:
            recipe.set("name", name.value, name.key)
    source, working = left.pop("src", None), left.pop("pretrained_model_name_or_path", None)
    found = None
    for item in (working, source):
        if item is not None and not is_nothing(item.value) and exists(Path(resolved(str(item.value), recipe.folders))):
            found = found or item
    chosen = found or next(
        (item for item in (source, working) if item is not None and not is_nothing(item.value)), None
    )
    for item in (source, working):
        if item is None:
            continue
        if item is chosen:
            recipe.set("checkpoint", item.value, item.key)
        elif is_nothing(item.value):
            recipe.rest(item.key)
        else:
            recipe.change(item.key, f"left out: {chosen.key if chosen else ''} is the checkpoint to train on")


def _concepts(left: dict[str, Item], recipe: Recipe) -> None:
    kept = left.get("model_dir")
    model_dir = "" if kept is None or is_nothing(kept.value) else str(kept.value)
    inside, use, path = left.pop("concepts_list", None), left.pop("use_concepts", None), left.pop("concepts_path", None)
    from_file = use is not None and use.value is True and path is not None and not is_nothing(path.value)
    if use is not None:
        recipe.rest(use.key) if not from_file else recipe.change(use.key, "the file of concepts counts")
    if path is not None and not from_file:
        recipe.rest(path.key) if is_nothing(path.value) else recipe.skip(path.key, "use_concepts is off")
    if from_file and path is not None:
        text = str(path.value).strip()
        try:
            if text.startswith("["):
                data, place = parse_json(text, recipe.source), recipe.source
            else:
                place = Path(resolved(text, recipe.folders))
                data = read_document(place).data
        except LoraloomError as error:
            recipe.problem("dataset.folder", f"{path.key}: {error.problem}")
        else:
            if is_concepts_list(data):
                recipe.change(path.key, "read")
                take_concepts(data, recipe, source=place, prefix=path.key, model_dir=model_dir)
            else:
                recipe.problem("dataset.folder", f"{path.key}: {place} is no list of concepts")
        if inside is not None:
            recipe.change(inside.key, f"{path.key} counts instead")
        return
    listed = inside.value if inside is not None else None
    if isinstance(listed, list) and any(isinstance(entry, Mapping) and entry for entry in listed):
        take_concepts(
            [entry for entry in listed if isinstance(entry, Mapping)],
            recipe,
            source=recipe.source,
            prefix="concepts_list",
            model_dir=model_dir,
        )
    elif inside is not None:
        recipe.rest(inside.key)
    old = [{} for _ in range(9)]  # type: list[dict[str, Any]]
    for name in [name for name in left if re.match(r"c[1-9]_", name)]:
        item = left.pop(name)
        old[int(name[1]) - 1][name[3:]] = item.value
        recipe.rest(item.key) if listed or is_nothing(item.value) else recipe.change(
            item.key, "part of dataset.concepts"
        )
    if not listed and any(old):
        scratch = Recipe(recipe.source, recipe.program, {"checkpoint": recipe.get("checkpoint")})
        take_concepts([entry for entry in old if entry], scratch, source=recipe.source, model_dir=model_dir)
        recipe.changed += [(key, note) for key, note in scratch.changed if "class_data_dir" in key]
        recipe.settings.setdefault("dataset", {}).update(scratch.settings.get("dataset", {}))
        if "preview" in scratch.settings:
            recipe.settings["preview"] = scratch.settings["preview"]


def _rates_and_ends(left: dict[str, Item], items: Items, recipe: Recipe) -> None:
    if "not_cache_latents" in left:
        recipe.skip(left.pop("not_cache_latents").key, "pictures are always encoded once, before the first step")
    stop = left.pop("stop_text_encoder", left.pop("train_text_encoder", None))
    if stop is not None:
        share = 1.0 if is_nothing(stop.value) else finite(stop.value)
        if share is None:
            recipe.problem("optimizer.text_encoder_stop", f"{stop.key} = {shown(stop.value)} is no number")
            share = 1.0
        if share == 0:
            recipe.set("adapter.text_encoder", False, stop.key)
            unused = left.pop("lora_txt_learning_rate", None)
            if unused is not None:
                recipe.rest(unused.key)
        elif share >= 1:
            recipe.rest(stop.key)
        else:
            recipe.set("optimizer.text_encoder_stop", share, stop.key)
    if "train_unet" in left:
        item = left.pop("train_unet")
        recipe.rest(item.key) if item.value else recipe.set("adapter.unet", False, item.key)
    decay, old = left.pop("weight_decay", None), left.pop("adamw_weight_decay", None)
    if decay is not None and old is not None:
        recipe.change(old.key, f"{decay.key}, the later name, counts")
    elif old is not None:
        decay = old
    if decay is not None:
        recipe.set("optimizer.weight_decay", decay.value, decay.key)
    ema = left.pop("use_ema", None)
    if ema is not None:
        if ema.value is True:
            recipe.skip(ema.key, "an average of the whole model (use_lora off); that of a LoRA is ema.enabled=true")
        else:
            recipe.rest(ema.key)
    if "save_embedding_every" in left and str(left["save_embedding_every"].value) in ("0", "0.0"):
        recipe.set("saving.every_epochs", 0, left.pop("save_embedding_every").key)
    shuffle = left.get("shuffle_tags")
    if shuffle is not None and shuffle.value is True:
        items["keep_tokens"] = Item("(shuffle_tags)", 1)
    _sanity(left, recipe)
    _adaptation(left, recipe)


def _sanity(left: dict[str, Item], recipe: Recipe) -> None:
    """A preview of its own, with its seed and what it is to avoid."""
    prompt = left.pop("sanity_prompt", None)
    options = [(left.pop(name, None), short) for name, short in (("sanity_negative_prompt", "n"), ("sanity_seed", "d"))]
    given = [(item, short) for item, short in options if item is not None]
    if prompt is None or is_nothing(prompt.value):
        for item in (prompt, *(item for item, _ in given)):
            if item is not None:
                recipe.rest(item.key)
        return
    line = str(prompt.value)
    recipe.mapped.append(Mapped(prompt.key, "preview.prompts", prompt.value))
    for item, short in given:
        if is_nothing(item.value):
            recipe.rest(item.key)
        else:
            line += f" --{short} {item.value}"
            recipe.mapped.append(Mapped(item.key, "preview.prompts", item.value))
    preview = recipe.settings.setdefault("preview", {})
    preview["prompts"] = [*preview.get("prompts", []), line]


def _adaptation(left: dict[str, Item], recipe: Recipe) -> None:
    """Arguments of the optimizers that find their rate; saved with every other one too."""
    from loraloom.training.optimizer_names import is_adaptive

    names = [name for name in ("beta1", "beta2", "d0", "eps") if f"adaptation_{name}" in left]
    found = {name: left.pop(f"adaptation_{name}") for name in names}
    optimizer = left.get("optimizer")
    used = optimizer is not None and is_adaptive(str(optimizer.value))
    betas = [found[name] for name in ("beta1", "beta2") if name in found]
    for name, item in found.items():
        if not used or is_nothing(item.value) or str(item.value) in ("0", "0.0"):
            recipe.rest(item.key)
        elif name == "d0":
            recipe.set("optimizer.args", {**(recipe.get("optimizer.args") or {}), "d0": item.value}, item.key)
        elif name == "eps":
            recipe.set("optimizer.eps", item.value, item.key)
        elif len(betas) == 2:
            recipe.set("optimizer.betas", [beta.value for beta in betas], item.key)
        else:
            recipe.skip(item.key, "optimizer.betas takes both, and only one is given")


def _regularization(left: dict[str, Item], recipe: Recipe) -> None:
    scaled = left.pop("prior_loss_scale", None)
    if scaled is None:
        return
    if not scaled.value:
        recipe.rest(scaled.key)
        for name in ("prior_loss_target", "prior_loss_weight_min"):
            if name in left:
                recipe.rest(left.pop(name).key)
        return
    recipe.change(scaled.key, "the weight falls to objective.prior_loss_min")
    lowest, target = left.pop("prior_loss_weight_min", None), left.pop("prior_loss_target", None)
    if lowest is not None:
        recipe.set("objective.prior_loss_min", lowest.value, lowest.key)
    if target is not None:
        recipe.skip(target.key, "counted in epochs there; objective.prior_loss_steps is counted in steps")
