"""Who a run is: what must be the same for it to go on, and for processes to train it together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.control import Control, heed, keep_going
from loraloom.data.sample import Dataset, Sample
from loraloom.errors import ResumeError, SettingsError
from loraloom.events import Listener, Notice
from loraloom.formats.files import sha256_of
from loraloom.formats.tensors import bytes_of
from loraloom.models.checkpoint import Checkpoint
from loraloom.plain_data import shown
from loraloom.setting_marks import MayChange
from loraloom.settings import changeable_settings
from loraloom.training.settings import TrainSettings

__all__ = ["Identity", "changed_settings", "check_alike", "check_identity", "checkpoint_fingerprint", "identity_of"]

_LISTED_SAMPLES = 20_000
"""Up to this many pictures are remembered one by one, so that changes of the dataset can be named picture by
picture."""

# The checkpoint and the dataset are compared by their content instead of their paths.
_CHANGEABLE = changeable_settings(TrainSettings)


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to go on: the base, the pictures and captions, the settings that matter."""

    checkpoint: str
    dataset: str
    samples: Mapping[str, str]
    """Digest of each picture with its caption by identity; empty for a very large dataset."""
    settings: Mapping[str, Any]

    def to_values(self) -> dict[str, Any]:
        """As plain data."""
        return {
            field.name: dict(value) if isinstance(value := getattr(self, field.name), Mapping) else value
            for field in fields(self)
        }


def identity_of(
    settings: TrainSettings, dataset: Dataset, checkpoint: Checkpoint, control: Control = keep_going
) -> Identity:
    """The identity of a run with these settings. ``control`` is heeded between pictures, whose masks are read, and
    between tensors."""
    samples = {}
    for sample in dataset.samples:
        heed(control)
        samples[sample.identity] = _sample_digest(sample)
    digest = sha256()
    for identity in sorted(samples):
        digest.update(f"{identity}\0{samples[identity]}\n".encode("utf-8", "backslashreplace"))
    return Identity(
        checkpoint=checkpoint_fingerprint(checkpoint, control),
        dataset=digest.hexdigest(),
        samples=samples if len(samples) <= _LISTED_SAMPLES else {},
        settings=_flat(_dumped(settings)),
    )


def _dumped(settings: TrainSettings) -> dict[str, Any]:
    """All settings but where the concepts' files lie, and ``notify``, whose address may hold a secret.

    What is unset and was resolved stands as what it came to: writing that down changes no run.
    """
    data = settings.model_dump(mode="json", exclude={"notify"})
    data["optimizer"]["lr"] = settings.optimizer.learning_rate
    data["dataset"]["cache_to_disk"] = settings.dataset.latent_folder is not None
    places = {"folder", "mask_folder", "caption_table"}
    data["dataset"]["concepts"] = [
        concept.model_dump(mode="json", exclude_defaults=True, exclude=places) for concept in settings.dataset.concepts
    ]
    return data


def _sample_digest(sample: Sample) -> str:
    """Of everything about a sample but where its files lie."""
    parts = [f"{sample.repeats} {sample.is_regularization}"]
    parts += [
        f"{part.name}={value!r}"
        for part in fields(sample)
        if part.name not in ("path", "concept", "caption_path", "captions")
        and not isinstance(value := getattr(sample, part.name), Path)
    ]
    parts.append(repr(sample.captions.model_dump(exclude_defaults=True, exclude={"table"})))
    if sample.mask_path is not None:
        parts.append(sha256_of(sample.mask_path))
    return sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def checkpoint_fingerprint(checkpoint: Checkpoint, control: Control = keep_going) -> str:
    """A hash of the names, types and shapes of all tensors and of up to 64 values of each, spread evenly.

    Any training or merge changes it, and it takes a moment where a hash of the whole file reads gigabytes.
    """
    digest = sha256()
    for name in sorted(checkpoint):
        heed(control)
        tensor = checkpoint.mapped(name).reshape(-1)
        digest.update(f"{name}{tensor.dtype}{tuple(checkpoint.info(name).shape)}".encode())
        digest.update(bytes_of(tensor[:: max(1, len(tensor) // 64)][:64]))
    return digest.hexdigest()


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _mark_of(path: str) -> MayChange | None:
    """Whether a setting may change, and what follows from that."""
    marks = (mark for name, mark in _CHANGEABLE.items() if path == name or (name[-1] == "." and path.startswith(name)))
    return next(marks, None)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Paths of the settings that differ; one that is unknown on a side counts as its default there."""
    missing = object()
    return [
        path
        for path in sorted(set(before) | set(now))
        if path in now and before.get(path, defaults.get(path, missing)) != now[path]
    ]


def check_identity(
    before: Mapping[str, Any], now: Identity, listener: Listener, *, force: bool, branch: bool = False
) -> list[str]:
    """Compare the identity kept in a state with that of the run that is to go on; returns the changed settings.

    ResumeError that says what differs, unless ``force``: then a warning does. A ``branch`` is made to have other
    settings and may have other pictures; only its base must be the same.
    """
    changed = changed_settings(before["settings"], now.settings, _flat(_defaults()))
    told = [
        f"{path} = {_shown(now.settings[path])} (it was {_shown(before['settings'].get(path))})" for path in changed
    ]
    strict = [text for path, text in zip(changed, told, strict=True) if _mark_of(path) is None]

    pictures = _dataset_differences(before, now)
    differences = [] if before["checkpoint"] == now.checkpoint else ["the checkpoint is another one"]

    # A branch is made to differ, so it only says in what. A run that goes on must not, or it is another run.
    if branch:
        for text in (*pictures, *strict):
            listener(Notice(f"other than in the run it branches from: {text}"))
    else:
        differences += [*pictures, *strict]
    if differences and not force:
        hint = Sentence("give it the same files and settings as at its start")
        if not branch:
            hint = Sentence(hint, "; or ", Action.BRANCH_RUN, " starts a new run from here with other settings")
        hint = Sentence(hint, "; or ", Action.FORCE_RESUME)
        raise ResumeError("the run cannot go on exactly: " + "; ".join(differences), hint)
    for text in differences:
        listener(Notice(f"going on although {text}", "warning"))

    # Settings that change results by rounding alone never keep a run from going on.
    rounding = [path for path in changed if (mark := _mark_of(path)) is not None and mark.by_rounding]
    if rounding and not branch:
        listener(Notice(f"{', '.join(rounding)} changed: results may differ by rounding", "warning"))
    return changed


def check_alike(identities: Sequence[tuple[Identity, str]]) -> None:
    """Raise SettingsError where a process of a run was given something else than the first one.

    Each is what a process would train, and the name of its mixed precision.
    """
    (first, precision), problems = identities[0], []
    for rank, (other, own_precision) in enumerate(identities[1:], 1):
        differences = [] if other.checkpoint == first.checkpoint else ["the checkpoint is another one"]
        differences += _dataset_differences(first.to_values(), other)
        differences += [
            f"{path} = {_shown(other.settings.get(path))} instead of {_shown(value)}"
            for path, value in first.settings.items()
            if other.settings.get(path) != value and not ((mark := _mark_of(path)) is not None and mark.on_a_machine)
        ]
        if own_precision != precision:
            differences.append(f"mixed precision is {own_precision} instead of {precision}")
        problems += [f"process {rank} differs from process 0: {text}" for text in differences]
    if problems:
        raise SettingsError(problems, "every machine needs the same settings, pictures, captions and checkpoint")


def _defaults() -> Mapping[str, Any]:
    """The default of every setting that has one, nested."""
    return _group_defaults(TrainSettings)


def _group_defaults(cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, info in cls.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
            found[name] = _group_defaults(annotation)
        elif not info.is_required():
            found[name] = _as_json(info.get_default(call_default_factory=True))
    return found


def _as_json(value: Any) -> Any:
    """The value of a setting as ``model_dump(mode="json")`` has it."""
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return "not set" if value is None else shown(value)


def _dataset_differences(before: Mapping[str, Any], now: Identity) -> list[str]:
    if before["dataset"] == now.dataset:
        return []
    old = before["samples"]
    if not old or not now.samples:
        return ["the pictures or captions are not the same"]

    # Names tell a person what to look for; three of them are enough to see a pattern.
    kinds = {
        "changed": [name for name in now.samples if name in old and old[name] != now.samples[name]],
        "new": [name for name in now.samples if name not in old],
        "missing": [name for name in old if name not in now.samples],
    }
    texts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    return [f"pictures or captions: {', '.join(texts)}"]
