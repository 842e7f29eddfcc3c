"""Checks of the packages beside Loraloom: what is missing for what, and what does not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from loraloom.studio.doctor.finding import Finding, Machine, good, note, problem

__all__ = ["check_8bit", "check_optional", "check_versions"]


@dataclass(frozen=True)
class _Optional:
    """A package that Loraloom uses where it is installed."""

    name: str
    purpose: str
    install: str


_OPTIONAL = (
    _Optional("bitsandbytes", "8-bit and paged optimizers", 'pip install "loraloom[optimizers-8bit]"'),
    _Optional("pytorch-optimizer", "optimizers beyond torch's, such as prodigy", 'pip install "loraloom[optimizers]"'),
    _Optional("tensorboard", "curves in TensorBoard", 'pip install "loraloom[tensorboard]"'),
    _Optional("ray", "sweeps over several machines", 'pip install "loraloom[ray]"'),
    _Optional("diffusers", "a second reader's check of saved LoRAs", "pip install diffusers transformers peft"),
)
_ASKED = (
    *("loraloom", "torch", "torchvision", "torchaudio", "xformers", "triton", "tokenizers", "numpy"),
    *("diffusers", "transformers", "peft", "accelerate", "huggingface-hub", "bitsandbytes"),
    *("pytorch-optimizer", "dadaptation", "ray", "tensorboard"),
)
"""Packages whose own requirements are compared with what is installed, where they are."""
_READERS = {"diffusers", "transformers", "peft"}
_TRIED_WITH = "test"
"""The extra that says which versions of the other readers the tests have run with."""
_EXTRAS = ("optimizers", "optimizers-8bit", "ray", "tensorboard")
"""Loraloom's extras that hold packages for people."""


def check_optional(machine: Machine) -> Iterator[Finding]:
    """Which optional packages are here, and what the others would be for."""
    for package in _OPTIONAL:
        installed = _installed(package.name)
        if installed is None:
            yield note(package.name, f"not installed; it is for {package.purpose}", f"if wanted: {package.install}")
        else:
            yield good(package.name, f"{installed}, for {package.purpose}")


def check_8bit(machine: Machine) -> Iterator[Finding]:
    """Whether an 8-bit optimizer really takes a step on the device."""
    trouble = machine.torch.facts().optimizer_8bit
    if trouble:
        advice = "`pip install -U bitsandbytes`; until then take adamw in place of adamw_8bit"
        yield problem("8-bit optimizers", trouble, advice)


def check_versions(machine: Machine) -> Iterator[Finding]:
    """Whether the packages that are installed are ones that the others ask for."""
    # What Loraloom needs fails sooner or later; two strangers may disagree and never meet.
    own, others, untried = [], [], []
    for name in _ASKED:
        for wanted, is_needed in _requirements(name):
            there = _installed(wanted.name)
            if there is None or wanted.specifier.contains(there, prereleases=True):
                continue
            said = f"{name} asks for {wanted.name}{wanted.specifier}, and {there} is installed"
            if not is_needed:
                untried.append(f"{wanted.name} {there} (tried: {wanted.specifier})")
            elif name == "loraloom":
                own.append((said, f'pip install "{wanted.name}{wanted.specifier}"'))
            else:
                others.append((said, f"pip install -U {name}"))

    for said, command in own:
        yield problem("versions", said, f"`{command}`")
    for said, command in others:
        yield note("versions", said, f"`{command}`, or remove that package if nothing needs it")
    if untried:
        found = f"not tried with Loraloom: {', '.join(untried)}"
        yield note("versions", found, "where the check of a saved LoRA fails, install one of those")
    if not (own or others or untried):
        yield good("versions", "the packages fit together")


def _requirements(name: str) -> Iterator[tuple[Requirement, bool]]:
    """What a package asks for on this system, and whether it is needed, or only what was tried with it."""
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return

    # Loraloom asks for the packages of its extras too, wherever these came from; of others the extras are unknown.
    extras = ("", *_EXTRAS) if name == "loraloom" else ("",)
    for wanted in map(Requirement, lines):
        marker = wanted.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield wanted, True
        elif name == "loraloom" and wanted.name in _READERS and marker.evaluate({"extra": _TRIED_WITH}):
            yield wanted, False


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
