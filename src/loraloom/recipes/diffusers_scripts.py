"""Command lines of diffusers' training scripts (examples/text_to_image, examples/dreambooth), with their own defaults.

Source: the argument parsers of the scripts in the version of 2026. All of them train the attention of the U-Net alone
unless ``--train_text_encoder`` is given, with alpha equal to the rank, and cut every picture to a square.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.plain_data import finite, shown
from loraloom.recipes.names import REASONS, unknown
from loraloom.recipes.recipe import Item, Items, Mapped, Recipe, exists, is_nothing, listed, resolved
from loraloom.recipes.scripts import Script
from loraloom.recipes.sd_scripts import take_arguments

__all__ = ["SCRIPTS", "take_diffusers_script"]


@dataclass(frozen=True)
class _Defaults:
    """What a script does where an argument is missing."""

    resolution: int
    batch: int
    epochs: int
    lr: float
    output: str
    full: bool = False
    """The whole model is trained."""
    weight_decay: float = 0.01
    preview_epochs: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)


_XL_DREAMBOOTH = {"text_encoder_lr": 5e-6}
SCRIPTS: Mapping[str, _Defaults] = {
    "train_text_to_image_lora.py": _Defaults(512, 16, 100, 1e-4, "sd-model-finetuned-lora"),
    "train_text_to_image_lora_sdxl.py": _Defaults(1024, 16, 100, 1e-4, "sd-model-finetuned-lora"),
    "train_dreambooth_lora.py": _Defaults(512, 4, 1, 5e-4, "lora-dreambooth-model", preview_epochs=50),
    "train_dreambooth_lora_sdxl.py": _Defaults(
        1024, 4, 1, 1e-4, "lora-dreambooth-model", weight_decay=1e-4, preview_epochs=50, more=_XL_DREAMBOOTH
    ),
    "train_text_to_image.py": _Defaults(512, 16, 100, 1e-4, "sd-model-finetuned", full=True, preview_epochs=5),
    "train_text_to_image_sdxl.py": _Defaults(1024, 16, 100, 1e-4, "sdxl-model-finetuned", full=True),
    "train_dreambooth.py": _Defaults(512, 4, 1, 5e-6, "dreambooth-model", full=True),
}
"""The scripts that are read, and their defaults."""

_NAMES = {
    "rank": "network_dim",
    "lora_dropout": "network_dropout",
    "snr_gamma": "min_snr_gamma",
    "random_flip": "flip_aug",
    "num_train_epochs": "max_train_epochs",
    "lr_num_cycles": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "pretrained_vae_model_name_or_path": "vae",
    "input_perturbation": "ip_noise_gamma",
    "proportion_empty_prompts": "caption_dropout_rate",
    "report_to": "log_with",
    "tracker_project_name": "log_tracker_name",
    "dataloader_num_workers": "max_data_loader_n_workers",
    "enable_xformers_memory_efficient_attention": "xformers",
    "resume_from_checkpoint": "resume",
    "push_to_hub": "huggingface_repo_id",
    "hub_model_id": "huggingface_repo_id",
    "hub_token": "huggingface_token",
    "pre_compute_text_embeddings": "cache_text_encoder_outputs",
}
"""Arguments that are sd-scripts' under another name."""
_ALIKE = listed(
    "pretrained_model_name_or_path seed resolution train_batch_size gradient_accumulation_steps gradient_checkpointing "
    "learning_rate lr_scheduler lr_warmup_steps max_grad_norm noise_offset max_train_steps mixed_precision "
    "use_8bit_adam logging_dir text_encoder_lr"
)
"""Arguments that are sd-scripts' too."""
_REASONS = {
    "revision": "which version of a model on the Hugging Face hub",
    "variant": "which files of a model on the Hugging Face hub",
    "non_ema_revision": "which version of a model on the Hugging Face hub",
    "cache_dir": "models and pictures are used where they lie",
    "image_column": "pictures are the files of a folder",
    "dataset_config_name": "pictures are the files of a folder",
    "max_train_samples": "all pictures of the folder are used",
    "image_interpolation_mode": "chosen by the program: pictures are shrunk and enlarged without moire",
    "allow_tf32": "not offered; mixed_precision=bf16 is faster than it",
    "set_grads_to_none": "always done",
    "enable_npu_flash_attention": REASONS["xformers"],
    "local_rank": "several GPUs are used with torchrun",
    "debug_loss": "every run logs its losses",
    "sample_batch_size": Sentence("regularization images are made before training: ", Action.MAKE_CLASS_IMAGES),
    "prior_generation_precision": Sentence(
        "regularization images are made before training: ", Action.MAKE_CLASS_IMAGES
    ),
    "tokenizer_name": "the tokenizer is part of the program",
    "tokenizer_max_length": "see max_token_length; unset: what the longest caption needs",
    "text_encoder_use_attention_mask": "captions are padded as programs that use the LoRA do",
    "class_labels_conditioning": "belongs to another family of models",
    "do_edm_style_training": "EDM's weights of noise levels are not offered",
    "output_kohya_format": "LoRA files are always in the form that the web UI reads",
    "adam_weight_decay_text_encoder": "one weight decay holds for all parts",
    "validation_images": "previews are painted from noise",
    "validation_scheduler": "the sampler of previews is preview.sampler",
    "validation_steps": "see preview.every_steps",
    "dream_training": "DREAM is not offered",
    "dream_detail_preservation": "DREAM is not offered",
    "offload_ema": "chosen by the program",
    "foreach_ema": "chosen by the program",
    "skip_save_text_encoder": "what was trained is in one file",
    "timestep_bias_strategy": "objective.timestep_sampling chooses timesteps: logit_normal or importance",
    "timestep_bias_multiplier": "see objective.timestep_sampling",
    "timestep_bias_begin": "see objective.timestep_sampling",
    "timestep_bias_end": "see objective.timestep_sampling",
    "timestep_bias_portion": "see objective.timestep_sampling",
}
_PRODIGY = {
    "prodigy_decouple": "weight_decouple",
    "prodigy_use_bias_correction": "bias_correction",
    "prodigy_safeguard_warmup": "safeguard_warmup",
    "prodigy_beta3": "beta3",
}


def take_diffusers_script(script: Script, recipe: Recipe) -> None:
    """Translate the command line of a script of :data:`SCRIPTS` into ``recipe``."""
    _Translation(script, recipe).all()


class _Translation:
    """The arguments that are not accounted for yet, and what takes them."""

    def __init__(self, script: Script, recipe: Recipe) -> None:
        self.recipe = recipe
        self.name = script.program
        self.defaults = SCRIPTS[script.program]
        self.items: Items = {}
        self.left: Items = {}
        for name, value in script.pairs:
            if name in self.left:
                recipe.change(name, "given twice; the last one counts")
            self.left[name] = Item(script.labels.get(name, name), value)

    def all(self) -> None:
        """Every argument, group by group."""
        recipe = self.recipe
        if self.defaults.full:
            recipe.set("method", "full", self.name, note="the whole model is trained, not a LoRA: method=full")
        self._parts()
        self._length_and_rates()
        self._optimizer()
        self._pictures()
        self._files()
        self._previews()
        for name in [name for name in self.left if name in (*_NAMES, *_ALIKE)]:
            item = self.left.pop(name)
            target = _NAMES.get(name, name)
            if target in self.items:
                recipe.skip(item.key, REASONS.get(target, f"{self.items[target].key} counts"))
            else:
                self.items[target] = item
        for name, item in self.left.items():
            if is_nothing(item.value) or item.value in (False, "False", "0"):
                recipe.rest(item.key)
            elif name in _REASONS:
                recipe.skip(item.key, _REASONS[name])
            else:
                recipe.skip(item.key, unknown(name, (*_NAMES, *_ALIKE, *_REASONS)))
                recipe.unknown.append(item.key)
        take_arguments(self.items, recipe, defaults=False)

    def _take(self, name: str) -> Item | None:
        item = self.left.pop(name, None)
        if item is not None and is_nothing(item.value):
            self.recipe.rest(item.key)
            return None
        return item

    def _switch(self, name: str, when: Callable[[str], object]) -> bool:
        """Whether a switch is on; ``when`` takes it over."""
        item = self._take(name)
        if item is None:
            return False
        if str(item.value).lower() in ("false", "0"):
            self.recipe.rest(item.key)
            return False
        when(item.key)
        return True

    def _default(self, path: str, value: Any, name: str, meaning: str = "") -> None:
        note = meaning or f"not given: {shown(value)}"
        self.recipe.set(path, value, f"({name})", note=f"{note}, as in {self.name}")

    # -- what is trained ---------------------------------------------------------------------------------------

    def _parts(self) -> None:
        recipe = self.recipe
        found = self._switch("train_text_encoder", lambda key: recipe.set("adapter.text_encoder", True, key))
        if not found:
            self._default("adapter.text_encoder", False, "train_text_encoder", "the U-Net alone")
        if self.defaults.full:
            return
        rank = self.left.get("rank")
        if rank is None or is_nothing(rank.value):
            self._default("adapter.rank", 4, "rank")
        alpha = 4 if rank is None else rank.value
        recipe.set("adapter.alpha", alpha, "(lora_alpha)", note=f"the rank, as in {self.name}")
        recipe.set("adapter.include", ["attn"], "(target_modules)", note=f"the attention alone, as in {self.name}")
        self._switch("use_dora", lambda key: recipe.set("adapter.kind", "dora", key))

    def _length_and_rates(self) -> None:
        recipe, defaults = self.recipe, self.defaults
        steps, epochs = self.left.get("max_train_steps"), self.left.get("num_train_epochs")
        if steps is not None and not is_nothing(steps.value):
            if epochs is not None:
                recipe.change(epochs.key, f"left out: {steps.key} decides the length, as there")
                del self.left["num_train_epochs"]
        elif epochs is None:
            self._default("epochs", defaults.epochs, "num_train_epochs")
        batch, rate = self.left.get("train_batch_size"), self.left.get("learning_rate")
        if batch is None:
            self._default("batch_size", defaults.batch, "train_batch_size")
        if rate is None:
            self._default("optimizer.lr", defaults.lr, "learning_rate")
        if recipe.get("adapter.text_encoder") and "text_encoder_lr" not in self.left:
            for name, value in defaults.more.items():
                self._default(f"optimizer.{name}", value, name)
        self._switch("scale_lr", lambda key: self._scale(key, batch, rate))
        schedule, warmup = self.left.get("lr_scheduler"), self.left.get("lr_warmup_steps")
        if schedule is None:
            self._default("lr_schedule.name", "constant", "lr_scheduler")
        elif warmup is None and schedule.value != "constant":
            self._default("lr_schedule.warmup_steps", 500, "lr_warmup_steps")

    def _scale(self, key: str, batch: Item | None, rate: Item | None) -> None:
        """The rate times the pictures of a step; more than one process is not known here."""
        accumulated = self.left.get("gradient_accumulation_steps")
        numbers = [
            self.defaults.lr if rate is None else finite(rate.value),
            self.defaults.batch if batch is None else finite(batch.value),
            1.0 if accumulated is None else finite(accumulated.value),
        ]
        if None in numbers:
            self.recipe.skip(key, "what it multiplies is not a number")
            return
        first, second, third = (number or 0.0 for number in numbers)
        if rate is not None:
            self.recipe.change(self.left.pop("learning_rate").key, f"multiplied, because {key} is given")
        scaled = float(f"{first * second * third:.6g}")
        self.recipe.set("optimizer.lr", scaled, key, note=f"{first:g} times the {second * third:g} pictures of a step")

    def _optimizer(self) -> None:
        recipe, options = self.recipe, {}
        named = self._take("optimizer")
        prodigy = named is not None and str(named.value).lower() == "prodigy"
        if named is not None:
            self.items["optimizer_type"] = Item(named.key, "Prodigy" if prodigy else named.value)
        betas = [self._take("adam_beta1"), self._take("adam_beta2")]
        for name, option in (("adam_weight_decay", "weight_decay"), ("adam_epsilon", "eps")):
            item = self._take(name)
            if item is not None:
                recipe.set(f"optimizer.{option}", item.value, item.key)
            elif option == "weight_decay" and (prodigy or self.defaults.weight_decay != 0.01):
                self._default("optimizer.weight_decay", self.defaults.weight_decay, name)
        given = [item for item in betas if item is not None]
        if given:
            values = [
                default if item is None else item.value for item, default in zip(betas, (0.9, 0.999), strict=True)
            ]
            recipe.set("optimizer.betas", values, given[0].key)
            recipe.mapped += [Mapped(item.key, "optimizer.betas", item.value) for item in given[1:]]
        for name, option in _PRODIGY.items():
            item = self._take(name)
            if item is not None and prodigy:
                options[option] = item.value in (True, "True", "true", "1") if name != "prodigy_beta3" else item.value
                recipe.mapped.append(Mapped(item.key, f"optimizer.args.{option}", options[option]))
            elif item is not None:
                recipe.rest(item.key)
        if prodigy:
            switches = {"weight_decouple": True, "bias_correction": True, "safeguard_warmup": True}
            recipe.set("optimizer.args", {**switches, **options}, "(prodigy_...)", note=f"as in {self.name}")

    # -- pictures ----------------------------------------------------------------------------------------------

    def _pictures(self) -> None:
        recipe = self.recipe
        if "resolution" not in self.left:
            self._default("dataset.resolution", self.defaults.resolution, "resolution")
        self._default("dataset.buckets", False, "buckets", "every picture is cut to a square")
        middle = self._switch("center_crop", lambda key: recipe.set("dataset.random_crop", False, key))
        if not middle:
            self._default("dataset.random_crop", True, "center_crop", "not given: cut at random")
        self._switch("offset_noise", lambda key: recipe.set("objective.noise_offset", 0.1, key))
        kind = self._take("prediction_type")
        if kind is not None:
            recipe.set("prediction", "v" if str(kind.value).startswith("v") else kind.value, kind.key)
        self._switch("use_ema", lambda key: recipe.set("ema.enabled", True, key))
        column = self._take("caption_column")
        if column is not None:
            known = str(column.value) in ("text", "caption", "prompt")
            reason = f"the column of a caption table is found by its name: text or caption, not {shown(column.value)}"
            recipe.rest(column.key) if known else recipe.skip(column.key, reason)
        folder, hub = self._take("train_data_dir"), self._take("dataset_name")
        if hub is not None and exists(Path(resolved(str(hub.value), recipe.folders))):
            folder, hub = folder or hub, None
        if hub is not None:
            recipe.known_of_required["dataset.folder"] = f"it was {hub.value}, a dataset on the Hugging Face hub"
            recipe.skip(hub.key, "a dataset on the Hugging Face hub: download it and give dataset.folder=FOLDER")
        if folder is not None:
            recipe.set("dataset.folder", folder.value, folder.key)
        self._concepts()

    def _concepts(self) -> None:
        """DreamBooth's two folders, each with one sentence for all pictures."""
        recipe = self.recipe
        wanted = self._switch("with_prior_preservation", lambda key: recipe.change(key, "see dataset.concepts"))
        concepts = []
        repeats = self._take("repeats")
        for which, is_class in (("instance", False), ("class", True)):
            folder, prompt = self._take(f"{which}_data_dir"), self._take(f"{which}_prompt")
            given = [item for item in (folder, prompt) if item is not None]
            if is_class and not wanted:
                for item in given:
                    recipe.skip(item.key, "without with_prior_preservation it changes nothing")
                continue
            if folder is None:
                for item in given:
                    recipe.skip(item.key, "there is no folder for it")
                continue
            concept: dict[str, Any] = {"folder": resolved(str(folder.value), recipe.folders), "repeats": 1}
            recipe.mapped.append(Mapped(folder.key, "dataset.concepts[].folder", concept["folder"]))
            if is_class:
                concept["is_regularization"] = True
            elif repeats is not None:
                concept["repeats"] = finite(repeats.value) or 1
                recipe.mapped.append(Mapped(repeats.key, "dataset.concepts[].repeats", repeats.value))
                repeats = None
            if prompt is not None:
                concept["captions"] = {"sentence": str(prompt.value)}
                recipe.mapped.append(Mapped(prompt.key, "dataset.concepts[].captions.sentence", prompt.value))
            concepts.append(concept)
        if repeats is not None:
            recipe.set("dataset.repeats", repeats.value, repeats.key)
        if concepts:
            recipe.settings.setdefault("dataset", {})["concepts"] = concepts
        weight, count = self._take("prior_loss_weight"), self._take("num_class_images")
        if weight is not None:
            recipe.set("prior_loss_weight", weight.value, weight.key)
        if count is not None:
            made = Action.MAKE_CLASS_IMAGES.of(count=count.value)
            text = Sentence("class images are made before training: ", made)
            recipe.skip(count.key, text)

    # -- what comes out ----------------------------------------------------------------------------------------

    def _files(self) -> None:
        """A folder there is a run folder here: its name and the one that it lies in."""
        recipe = self.recipe
        folder = self._take("output_dir")
        text = self.defaults.output if folder is None else str(folder.value).strip().strip('"')
        parent, name = _split(text)
        if name in ("", ".", ".."):
            parent, name = text, self.defaults.output
        key = "(output_dir)" if folder is None else folder.key
        recipe.set("name", name, key, note="the last part of output_dir is the name of the run")
        if parent:
            recipe.set("output", parent, f"{key} (its place)", note="runs are folders in it")
        every = self._take("checkpointing_steps")
        if every is None:
            self._default("saving.every_steps", 500, "checkpointing_steps")
        else:
            recipe.set("saving.every_steps", every.value, every.key)
        self._default("saving.every_epochs", 0, "checkpointing_steps: epochs", "files by steps alone")
        kept = self._take("checkpoints_total_limit")
        if kept is not None:
            recipe.set("saving.keep_last", kept.value, kept.key)
            recipe.set("saving.keep_states", kept.value, f"{kept.key} (states)", note="states too")

    def _previews(self) -> None:
        recipe = self.recipe
        prompt, several = self._take("validation_prompt"), self._take("validation_prompts")
        every, count = self._take("validation_epochs"), self._take("num_validation_images")
        prompts = [] if several is None else several.value if isinstance(several.value, list) else [several.value]
        prompts += [] if prompt is None else [prompt.value]
        if not prompts:
            for item in (every, count):
                if item is not None:
                    recipe.rest(item.key)
            return
        source = prompt or several
        recipe.set("preview.prompts", [str(text) for text in prompts], source.key if source else "(validation_prompt)")
        recipe.settings["preview"] |= {"steps": 30, "cfg_scale": 7.5, "at_start": False}
        if every is not None:
            recipe.set("preview.every_epochs", every.value, every.key)
        else:
            self._default("preview.every_epochs", self.defaults.preview_epochs, "validation_epochs")
        if count is not None:
            recipe.skip(count.key, "one preview per prompt: list a prompt several times for several")


def _split(path: str) -> tuple[str, str]:
    """The folder that a path lies in, and its last part, on any system."""
    trimmed = path.rstrip("/\\")
    parts = re.split(r"[/\\]", trimmed)
    return trimmed[: -len(parts[-1])].rstrip("/\\"), parts[-1]
