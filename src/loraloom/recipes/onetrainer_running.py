"""How OneTrainer trains: optimizer, lr schedule, precision, noise and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loraloom.recipes.onetrainer_file import OneTrainerFile
from loraloom.recipes.onetrainer_names import OPTIMIZERS, OPTIONS
from loraloom.recipes.recipe import Item, is_nothing
from loraloom.recipes.rows import Row

How = Callable[[Row, OneTrainerFile], None]


# -- optimizer -----------------------------------------------------------------------------------------------------


def optimizer(row: Row, file: OneTrainerFile) -> None:
    """The section of the optimizer, which holds the options of every one of them."""
    recipe = file.recipe
    name = file.word("optimizer.optimizer")
    options = {key: file.taken(key) for key in [key for key in file.left if key.startswith("optimizer.")]}
    if isinstance(file.said.get("optimizer"), Mapping):
        file.take("optimizer")

    if name not in OPTIMIZERS:
        if name:
            text = f"optimizer.optimizer = {name} is not offered: optimizer.name=... chooses another, or package.Class"
            recipe.problem("optimizer.name", text)
        for key in options:
            recipe.rest(key)
        return

    chosen = OPTIMIZERS[name]
    if options.pop("optimizer.is_paged", None) and name in ("ADAMW_8BIT", "LION_8BIT"):
        chosen = f"Paged{chosen}"
    recipe.rest("optimizer.is_paged")
    taken = _betas(name, options, file) | _options(name, options, file)
    file.as_sd_scripts(optimizer_type=Item("optimizer.optimizer", chosen), optimizer_args=Item("optimizer", taken))


def _betas(name: str, options: dict[str, Any], file: OneTrainerFile) -> dict[str, Any]:
    """Two of them, or the three that a few optimizers have."""
    betas = {number: options.pop(f"optimizer.beta{number}", None) for number in (1, 2, 3)}
    for number, value in betas.items():
        if value is None:
            file.recipe.rest(f"optimizer.beta{number}")
    if betas[1] is None or betas[2] is None:
        for number, value in betas.items():
            if value is not None:
                file.recipe.skip(f"optimizer.beta{number}", "beta1 and beta2 are set together")
        return {}
    if betas[3] is not None and name in ("CAME", "DADAPT_ADAN", "PRODIGY"):
        return {"betas": list(betas.values())}
    file.recipe.rest("optimizer.beta3")
    return {"betas": [betas[1], betas[2]]}


def _options(name: str, options: Mapping[str, Any], file: OneTrainerFile) -> dict[str, Any]:
    """What the chosen optimizer has of the options in the file."""
    taken: dict[str, Any] = {}
    for key, value in options.items():
        short = key.removeprefix("optimizer.")
        has_it = short in ("weight_decay", "eps") or name in OPTIONS.get(short, "").split()
        is_off = value is None or (value is False and short not in ("relative_step", "scale_parameter"))
        if is_off or not has_it:
            file.recipe.rest(key)
        else:
            taken[short] = value

    # These two take a pair, of which OneTrainer keeps the second number under a name of its own.
    if "eps" in taken and name in ("ADAFACTOR", "CAME"):
        second = options.get("optimizer.eps2")
        if second is not None:
            taken["eps"] = [taken["eps"], second]
        else:
            del taken["eps"]
            file.recipe.rest("optimizer.eps")
    return taken


# -- lr schedule ---------------------------------------------------------------------------------------------------

_NOTES = {
    "COSINE_WITH_RESTARTS": "cosine_with_restarts: here the rate jumps back up, there it climbs as it fell",
    "REX": "rex: falls earlier than OneTrainer's, whose constant is 0.9 instead of the paper's 0.5",
}


def schedule(row: Row, file: OneTrainerFile) -> None:
    recipe = file.recipe
    name = file.word("learning_rate_scheduler")
    custom, arguments = file.taken("custom_learning_rate_scheduler"), file.taken("scheduler_params")
    if name == "CUSTOM" and not is_nothing(custom):
        recipe.set("lr_schedule.name", str(custom), "custom_learning_rate_scheduler")
        recipe.rest("learning_rate_scheduler")
        _schedule_arguments(arguments, file)
        return
    recipe.rest("custom_learning_rate_scheduler")
    recipe.rest("scheduler_params")
    ours = file.schedule
    if ours is None:
        recipe.problem("lr_schedule.name", f"learning_rate_scheduler = {name} is not known here")
        return
    if ours == "constant" and file.peek("learning_rate_warmup_steps") > 0:
        ours = "constant_with_warmup"
    recipe.set("lr_schedule.name", ours, "learning_rate_scheduler", note=_NOTES.get(name, ""))


def _schedule_arguments(pairs: Any, file: OneTrainerFile) -> None:
    """Pairs of name and value; a value with % in it stands for a number of the run, which is not known here."""
    found = {}
    for pair in pairs if isinstance(pairs, list) else []:
        if not isinstance(pair, Mapping):
            continue
        key, value = pair.get("key"), pair.get("value")
        if "%" in str(value):
            file.recipe.skip("scheduler_params", f"{key} = {value}: write the number itself")
        else:
            found[str(key)] = str(value)
    if found:
        file.as_sd_scripts(lr_scheduler_args=Item("scheduler_params", found))
    else:
        file.recipe.rest("scheduler_params")


def warmup(row: Row, file: OneTrainerFile) -> None:
    """Steps of one batch, where ours are steps of the optimizer; below 1 it is a share of the run."""
    value = file.number(row.key)
    if value > 1:
        file.count(row.key, row.ours, value / max(file.whole("gradient_accumulation_steps", 1), 1))
    elif value > 0:
        file.recipe.set(row.ours, float(value), row.key)
    else:
        file.recipe.rest(row.key)


def cycles(row: Row, file: OneTrainerFile) -> None:
    value = file.number(row.key, 1.0)
    if file.schedule == "cosine_with_restarts":
        file.count(row.key, row.ours, value)
    else:
        file.recipe.rest(row.key)


def floor(row: Row, file: OneTrainerFile) -> None:
    value = file.number(row.key)
    if value > 0 and file.schedule not in (None, "constant"):
        file.recipe.set(row.ours, value, row.key)
    else:
        file.recipe.rest(row.key)


# -- precision and memory ------------------------------------------------------------------------------------------


def precision(full: str) -> How:
    """A type of numbers; ``full`` is what the setting calls fp32."""
    names = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": full, "TFLOAT_32": full}

    def take(row: Row, file: OneTrainerFile) -> None:
        name = file.word(row.key)
        if name in names:
            file.recipe.set(row.ours, names[name], row.key)
        elif name:
            file.recipe.skip(row.key, f"{name}: fp16, bf16 and fp32 are offered")

    return take


def max_norm(row: Row, file: OneTrainerFile) -> None:
    """OneTrainer clips at 1 where the key is missing, and not at all where the field is empty."""
    value = file.taken(row.key, 1.0)
    file.recipe.set(row.ours, 0.0 if value is None else value, row.key)


def ema(row: Row, file: OneTrainerFile) -> None:
    """Where the average lies is chosen by the program."""
    if file.word(row.key) in ("GPU", "CPU"):
        file.recipe.set(row.ours, True, row.key)
    else:
        file.recipe.rest(row.key)


def checkpointing(row: Row, file: OneTrainerFile) -> None:
    """A switch of the U-Net; in older files a word for all parts."""
    key = "unet.gradient_checkpointing"
    is_on = bool(file.taken(key))
    older = file.taken("gradient_checkpointing")
    if older is not None:
        file.recipe.rest(key)
        is_on, key = str(older).upper() not in ("OFF", "FALSE"), "gradient_checkpointing"
    if is_on:
        file.recipe.set("gradient_checkpointing", "full", key)
    else:
        file.recipe.rest(key)


def quantize(row: Row, file: OneTrainerFile) -> None:
    """Weights of few bits; what is trained itself stays whole."""
    name = file.word(row.key)
    bits = "nf4" if "NFLOAT_4" in name else "int8" if "8" in name or "GGUF" in name else ""
    if bits and not file.full:
        note = f"quantize={bits}: integers with a scale for each row" if bits == "int8" else ""
        file.recipe.set(row.ours, bits, row.key, note=note)
    else:
        file.recipe.rest(row.key)


def clip_skip(row: Row, file: OneTrainerFile) -> None:
    """Layers left out; ours counts the one whose output is used."""
    left_out = file.number(row.key)
    if left_out > 0:
        file.count(row.key, row.ours, left_out + 1)
    else:
        file.recipe.rest(row.key)


# -- noise and loss ------------------------------------------------------------------------------------------------


def forced(prediction: str) -> How:
    """A switch that says what the model predicts."""

    def take(row: Row, file: OneTrainerFile) -> None:
        if file.taken(row.key):
            file.recipe.set(row.ours, prediction, row.key)
        else:
            file.recipe.rest(row.key)

    return take


def noising(default: float) -> How:
    """A share of the 1000 timesteps."""

    def take(row: Row, file: OneTrainerFile) -> None:
        value = file.number(row.key, default)
        if value == default:
            file.recipe.rest(row.key)
        else:
            file.recipe.set(row.ours, round(1000 * value), row.key)

    return take


def timesteps(row: Row, file: OneTrainerFile) -> None:
    """A distribution and its two numbers, which mean something else for each."""
    recipe = file.recipe
    name = file.word("timestep_distribution")
    weight, bias = file.number("noising_weight"), file.number("noising_bias")
    if name == "LOGIT_NORMAL":
        recipe.set("objective.timestep_sampling", "logit_normal", "timestep_distribution")
        recipe.set("objective.logit_mean", bias, "noising_bias")
        recipe.set("objective.logit_std", weight + 1.0, "noising_weight")
        return
    recipe.rest("noising_weight")
    recipe.rest("noising_bias")
    is_uniform = name in ("", "UNIFORM") or (weight == 0 and name in ("SIGMOID", "HEAVY_TAIL"))
    if is_uniform:
        recipe.rest("timestep_distribution")
    else:
        text = f"{name} is not offered; objective.timestep_sampling has logit_normal and importance"
        recipe.skip("timestep_distribution", text)


_LOSSES = {
    "l2": ("mse_strength", 1.0),
    "l1": ("mae_strength", 0.0),
    "huber": ("huber_strength", 0.0),
    "log-cosh": ("log_cosh_strength", 0.0),
}
"""The key of each loss, and its strength where the key is missing."""


def losses(row: Row, file: OneTrainerFile) -> None:
    """OneTrainer adds up losses by their strengths; here there is one, the strongest."""
    recipe = file.recipe
    strengths = {name: file.number(key, default) for name, (key, default) in _LOSSES.items()}
    used = {name: strength for name, strength in strengths.items() if strength}
    for name, strength in strengths.items():
        if not strength:
            recipe.rest(_LOSSES[name][0])
    delta = file.number("huber_delta", 1.0)
    if not used:
        recipe.problem("objective.loss_type", "all losses have strength 0")
        used = {"l2": 1.0}

    strongest = max(used, key=lambda name: used[name])
    for name, strength in used.items():
        key = _LOSSES[name][0]
        if name == strongest:
            _loss(name, strength, key, file)
        else:
            recipe.skip(key, f"the loss is of one kind here, and {strongest} is the strongest")
    if strongest == "huber":
        note = f"huber_c = {delta:g}: Huber's loss in its smooth form"
        recipe.set("objective.huber_c", delta, "huber_delta", note=note)
        key = "(huber_delta: schedule)"
        recipe.set("objective.huber_schedule", "constant", key, note="the same at all timesteps")
    else:
        recipe.rest("huber_delta")


def _loss(name: str, strength: float, key: str, file: OneTrainerFile) -> None:
    note = "" if strength == 1 else f"{name}; a factor on all of it is not offered"
    if name == "log-cosh":
        name, note = "smooth_l1", "log-cosh is not offered: smooth_l1 is like it"
    file.recipe.set("objective.loss_type", name, key, note=note)


def loss_weight(row: Row, file: OneTrainerFile) -> None:
    """A function of the timestep, and a number that only one of them has."""
    recipe = file.recipe
    name, strength = file.word("loss_weight_fn"), file.number("loss_weight_strength", 5.0)
    if name == "MIN_SNR_GAMMA":
        recipe.set("objective.min_snr_gamma", strength, "loss_weight_strength")
        recipe.rest("loss_weight_fn")
        return
    recipe.rest("loss_weight_strength")
    if name == "DEBIASED_ESTIMATION":
        recipe.set("objective.debiased_estimation", True, "loss_weight_fn")
    elif name in ("", "CONSTANT"):
        recipe.rest("loss_weight_fn")
    else:
        recipe.skip("loss_weight_fn", f"{name} is not offered; objective.min_snr_gamma is")
