"""OneTrainer's configuration: the JSON that its window exports and its scripts take, with concepts and samples."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraloom.errors import FileFormatError, LoraloomError
from loraloom.plain_data import finite, shown
from loraloom.recipes import onetrainer_names as tables
from loraloom.recipes.names import unknown
from loraloom.recipes.onetrainer_concepts import read_sizes, take_concept
from loraloom.recipes.parsing import read_document
from loraloom.recipes.recipe import Item, Recipe, is_nothing, resolved
from loraloom.recipes.sd_scripts import take_arguments

__all__ = ["is_onetrainer", "take_onetrainer"]


def is_onetrainer(data: Any) -> bool:
    """Whether parsed JSON is a configuration of OneTrainer (a preset has no ``__version`` below its first keys)."""
    return isinstance(data, Mapping) and "training_method" in data and ("__version" in data or "model_type" in data)


def take_onetrainer(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate a configuration into ``recipe``, and the files of concepts and samples that it names.

    Raises FileFormatError for a model of another family, and for files of the versions 0 and 1 (of 2023), whose keys
    mean other things.
    """
    _Translation(data, recipe).all()


class _Translation:
    """Keys that are not accounted for yet, and what takes them."""

    def __init__(self, data: Mapping[str, Any], recipe: Recipe) -> None:
        self.recipe = recipe
        self.left: dict[str, Any] = {}
        for key, value in data.items():
            name = tables.RENAMED.get(str(key), str(key))
            if name in (*tables.PARTS, "optimizer") and isinstance(value, Mapping):
                self.left |= {f"{name}.{part}": inner for part, inner in value.items()}
            else:
                self.left[name] = value
        self.present = frozenset(self.left)
        self.family = ""

    def all(self) -> None:
        """Every key, group by group; what depends on another comes after it."""
        self._kind_of_file()
        self._defaults()
        self._adapter()
        self._rates()
        self._optimizer()
        self._schedule()
        self._precision()
        self._memory()
        self._other_parts()
        self._noise()
        self._loss()
        self._captions()
        self._data()
        self._previews()
        self._times()
        for key, path in tables.SAME.items():
            if key in self.left:
                value = self.left.pop(key)
                if is_nothing(value) or (path.endswith("dropout") and value == 0):
                    self.recipe.rest(key)
                else:
                    self.recipe.set(path, value, key)
        self._rest()
        told = {*(entry.key for entry in self.recipe.mapped), *dict(self.recipe.changed), *dict(self.recipe.unmapped)}
        self.recipe.idle[:] = [key for key in dict.fromkeys(self.recipe.idle) if key in self.present - told]

    # -- reading keys ------------------------------------------------------------------------------------------

    def _take(self, key: str, otherwise: Any = None) -> Any:
        """The value of a key, which is accounted for by whoever takes it."""
        return self.left.pop(key, otherwise)

    def _quiet(self, *keys: str) -> None:
        for key in keys:
            if key in self.left:
                del self.left[key]
                self.recipe.rest(key)

    def _number(self, key: str, otherwise: float = 0.0) -> float:
        """Take a number; one that is none is a problem, and counts as ``otherwise``."""
        value = self._take(key)
        if is_nothing(value):
            return otherwise
        number = None if isinstance(value, bool) else finite(value)
        if number is None:
            self.recipe.problem("", f"{key} = {shown(value)} is no number")
            return otherwise
        return number

    @staticmethod
    def _whole(value: Any, otherwise: int) -> int:
        """A whole number to reckon with; whether the setting takes it is found out elsewhere."""
        usable = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
        return value if usable else otherwise

    def _word(self, key: str) -> str:
        """Take one of OneTrainer's words; a value that is no text is a problem, and counts as none."""
        value = self._take(key)
        if value is not None and not isinstance(value, (str, bool)):
            self.recipe.problem("", f"{key} = {shown(value)} is no word")
            return ""
        return str(value or "").strip().upper()

    def _as_sd_scripts(self, **items: Item) -> None:
        """Hand on what is read as sd-scripts' arguments are."""
        take_arguments(items, self.recipe, defaults=False)

    def _count(self, key: str, path: str, number: float) -> None:
        """Set a whole number, at least 1; a fraction is rounded and said."""
        whole = max(1, round(number))
        note = "" if whole == number else f"{number:g} became {whole}"
        self.recipe.set(path, whole, key, note=note)

    # -- what it is --------------------------------------------------------------------------------------------

    def _kind_of_file(self) -> None:
        recipe, left = self.recipe, self.left
        if not isinstance(left.get("optimizer", {}), Mapping) or "train_unet" in left:
            raise FileFormatError(
                f"{recipe.source} was saved by a OneTrainer of 2023, whose keys meant other things",
                "open it in a newer OneTrainer and save it again",
            )
        self._quiet("__version", *(f"{section}.__version" for section in (*tables.PARTS, "optimizer")))
        self.family = family = self._word("model_type")
        if family and not family.startswith(tables.FAMILIES):
            raise FileFormatError(
                f"{recipe.source} is a recipe for {family.lower().replace('_', ' ')}",
                "LoRAs for Stable Diffusion 1, 2 and XL are trained here",
            )
        if family:
            recipe.rest("model_type")
        method = self._word("training_method")
        if method == "FINE_TUNE":
            recipe.set("method", "full", "training_method")
        elif method == "LORA":
            recipe.rest("training_method")
        else:
            recipe.problem(
                "method", f"training_method = {method or 'nothing'}: LoRAs and whole models are trained here"
            )
        self._quiet(*tables.OTHER_PARTS)
        base = self._take("base_model_name")
        if not is_nothing(base):
            self._as_sd_scripts(pretrained_model_name_or_path=Item("base_model_name", base))
        target = self._take("output_model_destination")
        if not is_nothing(target) and not isinstance(target, str):
            recipe.problem("name", f"output_model_destination = {shown(target)} is no path")
        elif not is_nothing(target):
            name = re.split(r"[\\/]", str(target).rstrip("\\/"))[-1]
            name = re.sub(r"\.(safetensors|ckpt|pt)$", "", name, flags=re.IGNORECASE)
            recipe.set("name", name, "output_model_destination", note="the run's name; its folder is in output")
        form = self._word("output_model_format")
        if "DIFFUSERS" in form or form in ("INTERNAL", "ORIGINAL_LORA", "COMFY_LORA"):
            recipe.skip("output_model_format", "files are written as sd-scripts does; loraloom convert makes others")
        elif form:
            recipe.rest("output_model_format")

    def _defaults(self) -> None:
        """A preset holds only what it changes: what OneTrainer takes for the rest is written down."""
        for key, value in tables.DEFAULTS.items():
            if key not in self.left:
                self.left[key] = value
                self.recipe.change(f"({key})", f"not given: {value}, as in OneTrainer")

    # -- what is trained ---------------------------------------------------------------------------------------

    def _adapter(self) -> None:
        recipe, full = self.recipe, self.recipe.get("method") == "full"
        kind = self._word("peft_type")
        own = {"LOHA": "loha", "LOKR": "lokr"}.get(kind, "lora")
        if kind.startswith("OFT") and not full:
            recipe.problem(
                "adapter.kind", f"peft_type = {kind}: OFT is not offered; adapter.kind=lora is nearest to it"
            )
        elif kind and kind != "LORA" and not full:
            recipe.set("adapter.kind", own, "peft_type")
        elif kind:
            recipe.rest("peft_type")
        decompose, on_output = self._take("lora_decompose"), self._take("lora_decompose_output_axis")
        if decompose and own == "lora" and not full:
            recipe.set("adapter.kind", "dora", "lora_decompose")
            if on_output:
                recipe.set("adapter.dora_axis", "output", "lora_decompose_output_axis")
        else:
            recipe.rest("lora_decompose")
        if on_output is not None and not (on_output and recipe.get("adapter.dora_axis")):
            recipe.rest("lora_decompose_output_axis")
        lokr = own == "lokr" and not full
        for key, path, default in (
            ("lokr_dim", "adapter.rank", None),
            ("lokr_decompose_both", "adapter.lokr_decompose_both", False),
            ("lokr_decompose_factor", "adapter.lokr_factor", -1),
            ("lokr_full_matrix", "adapter.lokr_full_matrix", False),
        ):
            value = self._take(key)
            if lokr and value is not None and value != default:
                recipe.set(path, value, key)
            else:
                recipe.rest(key)
        rank, alpha = self._take("lora_rank"), self._take("lora_alpha")
        if full:
            for key in ("lora_rank", "lora_alpha"):
                recipe.rest(key)
        else:
            if lokr and recipe.get("adapter.rank") is not None:
                recipe.rest("lora_rank")
            elif rank is not None:
                recipe.set("adapter.rank", rank, "lora_rank")
            if alpha is not None:
                recipe.set("adapter.alpha", alpha, "lora_alpha")
        self._layers(full=full)
        if full:
            self._quiet("lora_model_name", "dropout_probability")

    def _layers(self, *, full: bool) -> None:
        """Which layers of the U-Net: parts of diffusers' names, and everything where none is given."""
        recipe = self.recipe
        preset, text = str(self._take("layer_filter_preset") or "full"), str(self._take("layer_filter") or "")
        regex = bool(self._take("layer_filter_regex"))
        recipe.rest("layer_filter_regex")
        wanted = {"full": [], "attn-mlp": ["attentions"], "attn-only": ["attn"]}.get(preset)
        key = "layer_filter_preset" if wanted is not None else "layer_filter"
        recipe.rest("layer_filter" if key == "layer_filter_preset" else "layer_filter_preset")
        if wanted is None:
            wanted = [part.strip() for part in text.split(",") if part.strip()]
        if wanted == ["attentions"]:
            recipe.change(key, "the layers that are trained by default")
        elif not wanted and not full:
            rank, alpha = recipe.get("adapter.rank"), recipe.get("adapter.alpha")
            if rank is not None:
                recipe.set("adapter.conv_rank", rank, key, note="convolutions too, with the rank of the others")
            if alpha is not None:
                recipe.set("adapter.conv_alpha", alpha, "(layer_filter: alpha)", note="as of the other layers")
            recipe.change("(layer_filter: rest)", "the first and last layer and the timestep's are not trained here")
        elif not wanted:
            recipe.rest(key)
        elif regex or any("block" in part for part in wanted):
            recipe.skip(
                key, f"{', '.join(wanted)}: say it with adapter.include, on names such as lora_unet_mid_block_..."
            )
        else:
            patterns = [f"^lora_unet_.*{re.escape(part.replace('.', '_'))}" for part in wanted]
            recipe.set("adapter.include", [*patterns, "^lora_te"], key)

    def _rates(self) -> None:
        recipe = self.recipe
        scaler = self._word("learning_rate_scaler")
        batch, steps = (self._whole(self.left.get(key), 1) for key in ("batch_size", "gradient_accumulation_steps"))
        scale = {"BATCH": batch, "GRADIENT_ACCUMULATION": steps, "BOTH": batch * steps}.get(
            scaler.removeprefix("GLOBAL_"), 1
        )
        factor = max(scale, 1) ** 0.5
        if scale > 1:
            recipe.change("learning_rate_scaler", f"every rate was multiplied by the root of {scale}")
        else:
            recipe.rest("learning_rate_scaler")

        def rate(key: str) -> float | None:
            value = self._number(key, math.nan)
            return None if math.isnan(value) else float(f"{value * factor:.6g}")

        general = rate("learning_rate")
        if general is not None:
            recipe.set("optimizer.lr", general, "learning_rate")
        trained = {}
        for part in ("unet", "text_encoder", "text_encoder_2"):
            flag = self._take(f"{part}.train")
            trained[part] = flag is None or bool(flag)
            recipe.rest(f"{part}.train")
        two = self.family.startswith("STABLE_DIFFUSION_XL")  # the section of the second one is in every export
        if not trained["unet"]:
            recipe.set("adapter.unet", False, "unet.train")
        texts = [trained["text_encoder"], trained["text_encoder_2"]] if two else [trained["text_encoder"]]
        if not any(texts):
            recipe.set("adapter.text_encoder", False, "text_encoder.train")
        elif not all(texts):
            left_out = "^lora_te1_" if not texts[0] else "^lora_te2_"
            recipe.set("adapter.exclude", [left_out], "text_encoder.train" if not texts[0] else "text_encoder_2.train")
        own = {part: rate(f"{part}.learning_rate") for part in trained}
        for part, value in own.items():
            if value is None or not trained[part] or (part == "text_encoder_2" and not two):
                recipe.rest(f"{part}.learning_rate")
        if own["unet"] is not None and trained["unet"]:
            recipe.set("optimizer.unet_lr", own["unet"], "unet.learning_rate")
        pair = [own["text_encoder"], own["text_encoder_2"]] if two else [own["text_encoder"]]
        if any(value is not None for value in pair) and any(texts):
            values = [general if value is None else value for value in pair]
            if None not in values:
                one = values[0] if len(set(values)) == 1 else values
                recipe.set("optimizer.text_encoder_lr", one, "text_encoder.learning_rate")
        self._stops(trained)

    def _stops(self, trained: Mapping[str, bool]) -> None:
        recipe = self.recipe
        epochs = self._whole(self.left.get("epochs"), 0)
        for part in trained:
            key, unit = f"{part}.stop_training_after", self._word(f"{part}.stop_training_after_unit")
            recipe.rest(f"{part}.stop_training_after_unit")
            after = self._number(key)
            not_there = part == "text_encoder_2" and not self.family.startswith("STABLE_DIFFUSION_XL")
            if after <= 0 or unit not in ("EPOCH", "STEP") or not trained[part] or not_there:
                recipe.rest(key)
            elif part == "unet":
                recipe.skip(key, "the U-Net is trained to the end; give epochs or steps")
            elif part == "text_encoder_2":
                recipe.skip(key, "both text encoders stop together: optimizer.text_encoder_stop")
            elif unit == "STEP":
                self._count(key, "optimizer.text_encoder_stop", after)
            elif epochs and after < epochs:
                share = round(after / epochs, 6)
                recipe.set(
                    "optimizer.text_encoder_stop", share, key, note=f"{after:g} epochs are this share of the run"
                )
            else:
                recipe.rest(key)

    def _optimizer(self) -> None:
        recipe = self.recipe
        name = self._word("optimizer.optimizer")
        options = {key: self._take(key) for key in [key for key in self.left if key.startswith("optimizer.")]}
        if isinstance(self.left.get("optimizer"), Mapping):
            del self.left["optimizer"]
        if not name:
            for key in options:
                recipe.rest(key)
            return
        if name not in tables.OPTIMIZERS:
            text = f"optimizer.optimizer = {name} is not offered: optimizer.name=... chooses another, or package.Class"
            recipe.problem("optimizer.name", text)
            for key in options:
                recipe.rest(key)
            return
        chosen = tables.OPTIMIZERS[name]
        paged = options.pop("optimizer.is_paged", None)
        recipe.rest("optimizer.is_paged")
        if paged and name in ("ADAMW_8BIT", "LION_8BIT"):
            chosen = f"Paged{chosen}"
        taken: dict[str, Any] = {}
        betas = [options.pop(f"optimizer.beta{number}", None) for number in (1, 2, 3)]
        for number, value in enumerate(betas, 1):
            if value is None:
                recipe.rest(f"optimizer.beta{number}")
        if betas[0] is not None and betas[1] is not None:
            count = 3 if betas[2] is not None and name in ("CAME", "DADAPT_ADAN", "PRODIGY") else 2
            taken["betas"] = betas[:count]
            if count == 2:
                recipe.rest("optimizer.beta3")
        else:
            for number, value in enumerate(betas, 1):
                if value is not None:
                    recipe.skip(f"optimizer.beta{number}", "beta1 and beta2 are set together")
        for key, value in options.items():
            short = key.removeprefix("optimizer.")
            useful = short in ("weight_decay", "eps") or name in tables.OPTIONS.get(short, "").split()
            if value is None or not useful or (value is False and short not in ("relative_step", "scale_parameter")):
                recipe.rest(key)
            else:
                taken[short] = value
        eps2 = options.get("optimizer.eps2")
        if "eps" in taken and name in ("ADAFACTOR", "CAME"):
            if eps2 is not None:
                taken["eps"] = [taken["eps"], eps2]
            else:
                del taken["eps"]
                recipe.rest("optimizer.eps")
        self._as_sd_scripts(optimizer_type=Item("optimizer.optimizer", chosen), optimizer_args=Item("optimizer", taken))

    def _schedule(self) -> None:
        recipe = self.recipe
        name = self._word("learning_rate_scheduler")
        custom, arguments = self._take("custom_learning_rate_scheduler"), self._take("scheduler_params")
        steps = self._whole(self.left.get("gradient_accumulation_steps"), 1)
        warmup = self._number("learning_rate_warmup_steps")
        cycles, floor = self._number("learning_rate_cycles", 1.0), self._number("learning_rate_min_factor")
        schedule = tables.SCHEDULES.get(name)
        if name == "CUSTOM" and not is_nothing(custom):
            recipe.set("lr_schedule.name", str(custom), "custom_learning_rate_scheduler")
            recipe.rest("learning_rate_scheduler")
            self._schedule_arguments(arguments)
        else:
            for key in ("custom_learning_rate_scheduler", "scheduler_params"):
                recipe.rest(key)
            if schedule is None:
                recipe.problem("lr_schedule.name", f"learning_rate_scheduler = {name} is not known here")
            elif schedule == "constant" and warmup > 0:
                recipe.set("lr_schedule.name", "constant_with_warmup", "learning_rate_scheduler")
            elif name == "COSINE_WITH_RESTARTS":
                note = "cosine_with_restarts: here the rate jumps back up, there it climbs as it fell"
                recipe.set("lr_schedule.name", schedule, "learning_rate_scheduler", note=note)
            elif name == "REX":
                note = "rex: falls earlier than OneTrainer's, whose constant is 0.9 instead of the paper's 0.5"
                recipe.set("lr_schedule.name", schedule, "learning_rate_scheduler", note=note)
            else:
                recipe.set("lr_schedule.name", schedule, "learning_rate_scheduler")
        if warmup > 1:
            self._count("learning_rate_warmup_steps", "lr_schedule.warmup_steps", warmup / max(steps, 1))
        elif warmup > 0:
            recipe.set("lr_schedule.warmup_steps", float(warmup), "learning_rate_warmup_steps")
        else:
            recipe.rest("learning_rate_warmup_steps")
        if schedule == "cosine_with_restarts":
            self._count("learning_rate_cycles", "lr_schedule.cycles", cycles)
        else:
            recipe.rest("learning_rate_cycles")
        if floor > 0 and schedule not in (None, "constant"):
            recipe.set("lr_schedule.min_lr_ratio", floor, "learning_rate_min_factor")
        else:
            recipe.rest("learning_rate_min_factor")

    def _schedule_arguments(self, pairs: Any) -> None:
        found = {}
        for pair in pairs if isinstance(pairs, list) else []:
            if isinstance(pair, Mapping) and "%" in str(pair.get("value")):
                self.recipe.skip(
                    "scheduler_params", f"{pair.get('key')} = {pair.get('value')}: write the number itself"
                )
            elif isinstance(pair, Mapping):
                found[str(pair.get("key"))] = str(pair.get("value"))
        if found:
            self._as_sd_scripts(lr_scheduler_args=Item("scheduler_params", found))
        elif "scheduler_params" not in dict(self.recipe.unmapped):
            self.recipe.rest("scheduler_params")

    # -- how it is computed ------------------------------------------------------------------------------------

    def _precision(self) -> None:
        recipe = self.recipe
        for key, path, full in (
            ("train_dtype", "mixed_precision", "no"),
            ("output_dtype", "saving.precision", "float"),
        ):
            kind = self._word(key)
            value = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": full, "TFLOAT_32": full}.get(kind)
            if value is None:
                if kind:
                    recipe.skip(key, f"{kind}: fp16, bf16 and fp32 are offered")
                continue
            recipe.set(path, value, key)
        norm = self._take("clip_grad_norm", 1.0)
        recipe.set("optimizer.max_grad_norm", 0.0 if norm is None else norm, "clip_grad_norm")
        ema = self._word("ema")
        if ema in ("GPU", "CPU"):
            recipe.set("ema.enabled", True, "ema")
        else:
            recipe.rest("ema")
            self._quiet("ema_decay", "ema_update_step_interval")

    def _memory(self) -> None:
        recipe = self.recipe
        checkpointing = self._take("unet.gradient_checkpointing")
        older = self._take("gradient_checkpointing")
        key = "unet.gradient_checkpointing"
        if older is not None:
            recipe.rest(key)
            checkpointing, key = str(older).upper() not in ("OFF", "FALSE"), "gradient_checkpointing"
        if checkpointing:
            recipe.set("gradient_checkpointing", "full", key)
        else:
            recipe.rest(key)
        for key in ("weight_dtype", "unet.weight_dtype"):
            kind = self._word(key)
            if not kind:
                continue
            bits = "nf4" if "NFLOAT_4" in kind else "int8" if "8" in kind or "GGUF" in kind else ""
            if bits and recipe.get("method") != "full":
                note = f"quantize={bits}: integers with a scale for each row" if bits == "int8" else ""
                recipe.set("quantize", bits, key, note=note)
            else:
                recipe.rest(key)

    def _other_parts(self) -> None:
        """What is left of the sections of parts: it is detected from the checkpoint, or not trained."""
        recipe = self.recipe
        for part in ("text_encoder", "text_encoder_2", "vae"):
            self._quiet(
                *(
                    key
                    for key in list(self.left)
                    if key.startswith(f"{part}.") and (part == "vae" or not key.endswith("dropout_probability"))
                )
            )
        self._quiet("unet.model_name", "unet.include", "unet.train_embedding", "unet.attention_mask")
        self._quiet("unet.guidance_scale", "unet.dropout_probability")
        skip = self._number("text_encoder_layer_skip")
        if skip > 0:
            self._count("text_encoder_layer_skip", "clip_skip", skip + 1)
        else:
            recipe.rest("text_encoder_layer_skip")
        for part in ("text_encoder_2", "text_encoder_3", "text_encoder_4"):
            self._quiet(f"{part}_layer_skip")

    def _noise(self) -> None:
        recipe = self.recipe
        v, epsilon = self._take("force_v_prediction"), self._take("force_epsilon_prediction")
        for key, value, kind in (
            ("force_v_prediction", v, "v"),
            ("force_epsilon_prediction", epsilon, "epsilon"),
        ):
            if value:
                recipe.set("prediction", kind, key)
            else:
                recipe.rest(key)
        for key, path, default in (
            ("min_noising_strength", "objective.min_timestep", 0.0),
            ("max_noising_strength", "objective.max_timestep", 1.0),
        ):
            value = self._number(key, default)
            if value == default:
                recipe.rest(key)
            else:
                recipe.set(path, round(1000 * value), key)
        kind = self._word("timestep_distribution")
        weight, bias = self._number("noising_weight"), self._number("noising_bias")
        if kind == "LOGIT_NORMAL":
            recipe.set("objective.timestep_sampling", "logit_normal", "timestep_distribution")
            recipe.set("objective.logit_mean", bias, "noising_bias")
            recipe.set("objective.logit_std", weight + 1.0, "noising_weight")
            return
        for key in ("noising_weight", "noising_bias"):
            recipe.rest(key)
        if kind in ("", "UNIFORM") or (weight == 0 and kind in ("SIGMOID", "HEAVY_TAIL")):
            recipe.rest("timestep_distribution")
        else:
            text = f"{kind} is not offered; objective.timestep_sampling has logit_normal and importance"
            recipe.skip("timestep_distribution", text)

    def _loss(self) -> None:
        recipe = self.recipe
        strengths = {
            "l2": ("mse_strength", self._number("mse_strength", 1.0)),
            "l1": ("mae_strength", self._number("mae_strength")),
            "huber": ("huber_strength", self._number("huber_strength")),
            "log-cosh": ("log_cosh_strength", self._number("log_cosh_strength")),
        }
        used = {kind: (key, value) for kind, (key, value) in strengths.items() if value}
        for key, value in strengths.values():
            if not value:
                recipe.rest(key)
        delta = self._number("huber_delta", 1.0)
        if not used:
            recipe.problem("objective.loss_type", "all losses have strength 0")
            used = {"l2": ("mse_strength", 1.0)}
        largest = max(used, key=lambda kind: used[kind][1])
        for kind, (key, value) in used.items():
            if kind != largest:
                recipe.skip(key, f"the loss is of one kind here, and {largest} is the strongest")
            elif kind == "log-cosh":
                recipe.set(
                    "objective.loss_type", "smooth_l1", key, note="log-cosh is not offered: smooth_l1 is like it"
                )
            elif value != 1:
                recipe.set("objective.loss_type", kind, key, note=f"{kind}; a factor on all of it is not offered")
            else:
                recipe.set("objective.loss_type", kind, key)
        if largest == "huber":
            recipe.set(
                "objective.huber_c", delta, "huber_delta", note=f"huber_c = {delta:g}: Huber's loss in its smooth form"
            )
            recipe.set(
                "objective.huber_schedule", "constant", "(huber_delta: schedule)", note="the same at all timesteps"
            )
        else:
            recipe.rest("huber_delta")
        kind, strength = self._word("loss_weight_fn"), self._number("loss_weight_strength", 5.0)
        if kind == "MIN_SNR_GAMMA":
            recipe.set("objective.min_snr_gamma", strength, "loss_weight_strength")
            recipe.rest("loss_weight_fn")
            return
        recipe.rest("loss_weight_strength")
        if kind == "DEBIASED_ESTIMATION":
            recipe.set("objective.debiased_estimation", True, "loss_weight_fn")
        elif kind in ("", "CONSTANT"):
            recipe.rest("loss_weight_fn")
        else:
            recipe.skip("loss_weight_fn", f"{kind} is not offered; objective.min_snr_gamma is")

    # -- pictures ----------------------------------------------------------------------------------------------

    def _captions(self) -> None:
        """A text encoder that hears nothing in a share of the steps is a caption left out."""
        first = self._number("text_encoder.dropout_probability")
        second = self._number("text_encoder_2.dropout_probability")
        if first > 0:
            note = "the whole caption is left out" + (", for both text encoders" if second else "")
            self.recipe.set("dataset.captions.dropout", first, "text_encoder.dropout_probability", note=note)
        else:
            self.recipe.rest("text_encoder.dropout_probability")
        if second > 0 and not first:
            reason = "one text encoder alone cannot be left without a caption"
            self.recipe.skip("text_encoder_2.dropout_probability", reason)
        else:
            self.recipe.rest("text_encoder_2.dropout_probability")

    def _data(self) -> None:
        recipe = self.recipe
        self._resolution()
        masked = self._take("masked_training")
        if masked:
            recipe.set("dataset.masks", "beside", "masked_training")
        else:
            recipe.rest("masked_training")
            self._quiet("unmasked_weight", "normalize_masked_area_loss", "unmasked_probability")
        concepts = self._listed("concepts", "concept_file_name", "concepts")
        validates = bool(self._take("validation"))
        found: list[dict[str, Any]] = []
        held_out: list[str] = []
        for number, concept in enumerate(concepts):
            take_concept(recipe, f"concepts[{number}]", concept, found, held_out)
        if found:
            recipe.settings.setdefault("dataset", {})["concepts"] = found
        if held_out and validates:
            recipe.set("validation.folder", held_out[0], "validation")
            for folder in held_out[1:]:
                recipe.skip("validation", f"{folder}: pictures to measure on are in one folder here")
        elif held_out:
            recipe.change("validation", "off, so the concepts to measure on are left out")
        else:
            recipe.rest("validation")

    def _listed(self, key: str, file_key: str, what: str) -> Sequence[Mapping[str, Any]]:
        """A list that is in the file itself, or in one that it names."""
        inline, named = self._take(key), self._take(file_key)
        if isinstance(inline, list):
            self.recipe.rest(file_key)
            self.recipe.change(key, f"{len(inline)} {what}, see below")
            return [entry for entry in inline if isinstance(entry, Mapping)]
        self.recipe.rest(key)
        if is_nothing(named):
            return []
        path = Path(resolved(str(named), self.recipe.folders))
        try:
            data = read_document(path).data
        except LoraloomError as error:
            if key == "concepts":
                self.recipe.known_of_required["dataset.folder"] = f"the concepts are in {named}, which is not here"
            self.recipe.skip(file_key, f"{error.problem}")
            return []
        if not isinstance(data, list) or not all(isinstance(entry, Mapping) for entry in data):
            self.recipe.problem("", f"{file_key}: {path} is no list of {what}")
            return []
        self.recipe.change(file_key, f"{len(data)} {what} of {path.name}, see below")
        return data

    def _resolution(self) -> None:
        value = self._take("resolution")
        sizes = [] if is_nothing(value) else read_sizes(self.recipe, value, "resolution")
        if len(sizes) == 1:
            self.recipe.set("dataset.resolution", sizes[0], "resolution")
        elif sizes:
            self.recipe.set("dataset.resolutions", sizes, "resolution")
            note = "each picture at one of them at a time, as there"
            self.recipe.set("dataset.resolution_choice", "random", "(resolution)", note=note)

    # -- what comes out meanwhile ------------------------------------------------------------------------------

    def _previews(self) -> None:
        recipe = self.recipe
        prompts = []
        for number, sample in enumerate(self._listed("samples", "sample_definition_file_name", "samples")):
            if sample.get("enabled", True) is False or is_nothing(sample.get("prompt")):
                continue
            line = " ".join(str(sample["prompt"]).split())
            negative = " ".join(str(sample.get("negative_prompt") or "").split())
            line += f" --n {negative}" if negative else ""
            for option, key in (("w", "width"), ("h", "height"), ("s", "diffusion_steps"), ("l", "cfg_scale")):
                if isinstance(sample.get(key), (int, float)):
                    line += f" --{option} {sample[key]}"
            if isinstance(sample.get("seed"), int) and not sample.get("random_seed"):
                line += f" --d {sample['seed']}"
            sampler = tables.SAMPLERS.get(str(sample.get("noise_scheduler") or "").upper())
            line += f" --ss {sampler}" if sampler else ""
            if sample.get("sample_inpainting"):
                recipe.skip(f"samples[{number}].sample_inpainting", "previews are painted from noise")
            prompts.append(line)
        if prompts:
            self._as_sd_scripts(sample_prompts=Item("samples", prompts))

    def _times(self) -> None:
        """How often something is done: in epochs or steps; minutes become epochs."""
        recipe = self.recipe
        for key, section, first in (
            ("sample_after", "preview", "previews"),
            ("save_every", "saving", "files"),
            ("validate_after", "validation", "measuring"),
        ):
            value, unit = self._number(key), self._word(f"{key}_unit")
            recipe.rest(f"{key}_unit")
            off = value <= 0 or unit == "NEVER"
            if section == "validation" and recipe.get("validation.folder") is None:
                recipe.rest(key)
            elif off and section != "validation":
                recipe.set(f"{section}.every_epochs", 0, key)
            elif off:
                recipe.rest(key)
            elif unit in ("STEP", "ALWAYS"):
                self._count(key, f"{section}.every_steps", value if unit == "STEP" else 1)
                if section != "validation":
                    recipe.set(f"{section}.every_epochs", 0, f"({key}_unit)", note="by steps alone")
            elif unit == "EPOCH":
                self._count(key, f"{section}.every_epochs", value)
            else:
                recipe.change(key, f"{value:g} {unit.lower()}s: {first} come with epochs or steps here, one an epoch")
        value, unit = self._number("backup_after"), self._word("backup_after_unit")
        recipe.rest("backup_after_unit")
        minutes = {"SECOND": 1 / 60, "MINUTE": 1.0, "HOUR": 60.0}.get(unit)
        if value <= 0 or unit in ("", "NEVER"):
            recipe.rest("backup_after")
        elif minutes is not None:
            recipe.set("saving.state_every_minutes", value * minutes, "backup_after")
        elif unit == "STEP":
            self._count("backup_after", "saving.state_every_steps", value)
        else:
            recipe.change("backup_after", "a state is written with every file, and every few minutes")
        if not self._take("rolling_backup"):
            self._quiet("rolling_backup_count")
        recipe.rest("rolling_backup")

    def _rest(self) -> None:
        recipe = self.recipe
        for key, value in self.left.items():
            reason = tables.REASONS.get(key)
            if key in tables.SILENT:
                recipe.rest(key)
            elif reason is None:
                recipe.skip(key, unknown(key))
                recipe.unknown.append(key)
            elif (
                key in tables.SILENT
                or not value
                or is_nothing(value)
                or (key in tables.OFF and value == tables.OFF[key])
            ):
                recipe.rest(key)
            else:
                recipe.skip(key, reason)
