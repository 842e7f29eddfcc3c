"""Optimizers by name: each says which library's class it is. Libraries are imported on use; no torch here.

The settings ask this table what they may be called, so it takes names and no settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from loraloom.errors import SettingsError, UnknownNameError
from loraloom.registry import Entry, Registry

__all__ = ["OPTIMIZERS", "Recipe", "find_class", "find_optimizer", "find_recipe", "is_adaptive"]


@dataclass(frozen=True)
class Recipe:
    """A class of a library, and what has to be known to use it here."""

    path: str
    """Dotted path of the class."""
    package: str = "torch"
    """What pip installs."""
    extra: str = ""
    """Loraloom's extra that holds the package."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that differ from the class's defaults; optimizer.args may change them."""
    quick: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that change only the speed, so that they need no mention."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Names that the method's first implementation, and with it sd-scripts, has for arguments."""
    adaptive: bool = False
    """Finds the learning rate itself: lr is a factor on it, common to all groups."""
    one_rate: bool = False
    """Adaptive, and places the weights anew in every step, so that no group's steps can be scaled."""
    schedule_free: bool = False
    """Averages the weights instead of lowering the rate."""
    paged: bool = False
    """Keeps its state in memory that moves between the GPU and the computer."""
    remark: str = ""
    """What people should know before they use it."""

    @property
    def class_name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]

    def load(self, name: str) -> Any:
        """The class. SettingsError says what to install when the library is missing, UnknownNameError that it has
        no such class."""
        module_path, _, class_name = self.path.rpartition(".")
        try:
            module = import_module(module_path)
        except ModuleNotFoundError as error:
            # What is missing may be something that the package needs itself: then its name helps, not the
            # package's.
            command = f"pip install {self.package}"
            if self.extra:
                command += f', or pip install "loraloom[{self.extra}]"'
            missing = error.name or module_path
            if f"{module_path}.".startswith(f"{missing}."):
                missing = self.package
            problem = f"optimizer {name} needs the package {missing}, which is not installed"
            raise SettingsError([problem], command) from error

        found = getattr(module, class_name, None)
        if found is None:
            known = [key for key, value in vars(module).items() if inspect.isclass(value) and hasattr(value, "step")]
            raise UnknownNameError(f"optimizer in {module_path}", class_name, known)
        from torch.optim import Optimizer

        if not (inspect.isclass(found) and issubclass(found, Optimizer)):
            raise SettingsError([f"optimizer.name: {self.path} is not an optimizer"], "name a class of optimizers")
        return found


def _of_pytorch_optimizer(class_name: str, **rest: Any) -> Recipe:
    renamed = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
    return Recipe(f"pytorch_optimizer.{class_name}", "pytorch-optimizer", "optimizers", renamed=renamed, **rest)


def _of_bitsandbytes(class_name: str, **rest: Any) -> Recipe:
    return Recipe(f"bitsandbytes.optim.{class_name}", "bitsandbytes", "optimizers-8bit", **rest)


def _of_dadaptation(path: str, **rest: Any) -> Recipe:
    return Recipe(f"dadaptation.{path}", "dadaptation", "optimizers", adaptive=True, **rest)


ADAMW = Recipe("torch.optim.AdamW", quick={"fused": True})
ADAM = Recipe("torch.optim.Adam", quick={"fused": True})
SGD_NESTEROV = Recipe("torch.optim.SGD", args={"momentum": 0.9, "nesterov": True})
ADAMW_8BIT = _of_bitsandbytes("AdamW8bit")
PAGED_ADAMW = _of_bitsandbytes("PagedAdamW", paged=True)
PAGED_ADAMW_8BIT = _of_bitsandbytes("PagedAdamW8bit", paged=True)
PAGED_ADAMW_32BIT = _of_bitsandbytes("PagedAdamW32bit", paged=True)
LION = _of_pytorch_optimizer("Lion")
LION_8BIT = _of_bitsandbytes("Lion8bit")
PAGED_LION_8BIT = _of_bitsandbytes("PagedLion8bit", paged=True)
SGD_8BIT = _of_bitsandbytes(
    "SGD8bit",
    args={"momentum": 0.9},
    remark="bitsandbytes accepts Nesterov momentum and does without: this is plain momentum in 8 bits",
)
ADAFACTOR = _of_pytorch_optimizer(
    "AdaFactor", args={"betas": (None, 0.999), "relative_step": False, "scale_parameter": False}
)
CAME = _of_pytorch_optimizer("CAME")
PRODIGY = _of_pytorch_optimizer("Prodigy", adaptive=True)
DADAPT_ADAM = _of_pytorch_optimizer("DAdaptAdam", adaptive=True)
DADAPT_LION = _of_pytorch_optimizer("DAdaptLion", adaptive=True)
DADAPT_SGD = _of_pytorch_optimizer("DAdaptSGD", adaptive=True, one_rate=True, args={"momentum": 0.0})
DADAPT_ADAGRAD = _of_pytorch_optimizer("DAdaptAdaGrad", adaptive=True, one_rate=True)
DADAPT_ADAN = _of_dadaptation("DAdaptAdan")
DADAPT_ADAN_IP = _of_dadaptation("experimental.DAdaptAdanIP")
DADAPT_ADAM_PREPRINT = _of_dadaptation("experimental.DAdaptAdamPreprint")
SCHEDULE_FREE_ADAMW = _of_pytorch_optimizer("ScheduleFreeAdamW", schedule_free=True)
SCHEDULE_FREE_RADAM = _of_pytorch_optimizer("ScheduleFreeRAdam", schedule_free=True)
SCHEDULE_FREE_SGD = _of_pytorch_optimizer("ScheduleFreeSGD", schedule_free=True)

OPTIMIZERS = Registry(
    "optimizer",
    {
        name: Entry(f"loraloom.training.optimizer_names:{name.upper()}", summary)
        for name, summary in (
            ("adamw", "the usual choice"),
            ("adam", "adamw with the older kind of weight decay"),
            ("adamw_8bit", "adamw with a quarter of the memory for its state"),
            ("paged_adamw", "adamw whose state may leave the GPU"),
            ("paged_adamw_8bit", "adamw_8bit whose state may leave the GPU"),
            ("paged_adamw_32bit", "the same as paged_adamw"),
            ("lion", "half of adamw's state; wants a third to a tenth of adamw's rate"),
            ("lion_8bit", "lion with a quarter of the memory for its state"),
            ("paged_lion_8bit", "lion_8bit whose state may leave the GPU"),
            ("sgd_nesterov", "gradient descent with Nesterov momentum; wants a far higher rate"),
            ("sgd_8bit", "gradient descent with momentum, in 8 bits"),
            ("adafactor", "next to no state; can find its rate by itself (relative_step)"),
            ("came", "next to no state, closer to adamw"),
            ("prodigy", "adam that finds its learning rate"),
            ("dadapt_adam", "adam that finds its learning rate, more cautiously than prodigy"),
            ("dadapt_lion", "lion that finds its learning rate"),
            ("dadapt_sgd", "gradient descent that finds its learning rate"),
            ("dadapt_adagrad", "adagrad that finds its learning rate"),
            ("dadapt_adan", "adan that finds its learning rate"),
            ("dadapt_adan_ip", "dadapt_adan with another estimate of the rate"),
            ("dadapt_adam_preprint", "dadapt_adam as first published"),
            ("schedule_free_adamw", "adamw that needs no lr schedule"),
            ("schedule_free_radam", "as schedule_free_adamw, without warm-up"),
            ("schedule_free_sgd", "gradient descent that needs no lr schedule"),
        )
    },
)

# Other programs' names in lower case without separators; those that only differ in case and separators need no line.
_OTHER_NAMES = {
    "dadaptation": "dadapt_adam_preprint",
    "adamwschedulefree": "schedule_free_adamw",
    "radamschedulefree": "schedule_free_radam",
    "sgdschedulefree": "schedule_free_sgd",
    "sgdnesterov8bit": "sgd_8bit",
    "torchadamw": "adamw",
    "8bitadam": "adamw_8bit",
    "adam8bit": "adamw_8bit",
    "8bitadamw": "adamw_8bit",
    "paged8bitadamw": "paged_adamw_8bit",
    "8bitlion": "lion_8bit",
    "paged8bitlion": "paged_lion_8bit",
    "adamwdadaptation": "dadapt_adam",
    "adandadaptation": "dadapt_adan",
    "adanipdadaptation": "dadapt_adan_ip",
    "liondadaptation": "dadapt_lion",
    "sgddadaptation": "dadapt_sgd",
}


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def find_optimizer(name: str) -> str:
    """The registry's name for what other programs call ``name`` in any case (``AdamW8bit``), or a class path as it is.

    Raises UnknownNameError.
    """
    if "." in name:
        return name
    if name in OPTIMIZERS:
        return name
    known = {_plain(own): own for own in OPTIMIZERS} | _OTHER_NAMES
    if _plain(name) in known:
        return known[_plain(name)]
    error = UnknownNameError("optimizer", name, OPTIMIZERS)
    error.hint += "; or the path of a class, such as torch.optim.RAdam"
    raise error


_CLASSES_OF_OTHERS = {
    "apollo": "pytorch_optimizer.ApolloDQN",
    "pagedlion": "bitsandbytes.optim.PagedLion",
}
"""What sd_dreambooth_extension's menu means by them."""


def find_class(name: str) -> str | None:
    """The path of torch's or pytorch_optimizer's class of this name, in any case; None where there is none."""
    from torch.optim import Optimizer

    if _plain(name) in _CLASSES_OF_OTHERS:
        return _CLASSES_OF_OTHERS[_plain(name)]
    for package in ("torch.optim", "pytorch_optimizer"):
        try:
            module = import_module(package)
        except ImportError:
            continue
        for found, value in vars(module).items():
            is_optimizer = inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
            if is_optimizer and _plain(found) == _plain(name):
                return f"{package}.{found}"
    return None


def find_recipe(name: str) -> Recipe:
    """The recipe of an optimizer, or one made up for a class path."""
    name = find_optimizer(name)
    if "." not in name:
        recipe: Recipe = OPTIMIZERS.load(name)
        return recipe
    class_name = name.rpartition(".")[2]
    return Recipe(
        name,
        name.partition(".")[0].replace("_", "-"),
        adaptive="Prodigy" in class_name or class_name.startswith("DAdapt"),
        one_rate=class_name in ("DAdaptSGD", "DAdaptAdaGrad"),
        schedule_free="ScheduleFree" in class_name,
        paged=class_name.startswith("Paged"),
    )


def is_adaptive(name: str) -> bool:
    """Whether the optimizer finds its learning rate itself; False for a name that is not known."""
    try:
        return find_recipe(name).adaptive
    except UnknownNameError:
        return False
