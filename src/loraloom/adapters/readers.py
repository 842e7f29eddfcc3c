"""Which programs read a file of which kind: the one table of it, for the start of a run and for the docs. No torch.

The facts are from the source of the programs named, at the versions named; those about LyCORIS and diffusers are
tested against the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraloom.adapters.settings import AdapterSettings

__all__ = ["READERS", "Reading", "as_table", "kind_row", "reader_remark"]

PROGRAMS = ("AUTOMATIC1111", "Forge", "ComfyUI", "LyCORIS", "diffusers")
_NO = "no"


@dataclass(frozen=True)
class Reading:
    """``title``: the kind as people choose it; ``by``: what each of :data:`PROGRAMS` makes of its file, "yes" first."""

    title: str
    by: tuple[str, str, str, str, str]

    @property
    def is_universal(self) -> bool:
        """Whether every program reads the file right."""
        return all(text.startswith("yes") for text in self.by)


READERS: Mapping[str, Reading] = {
    "lora": Reading(
        "lora (with convolutions, any init, rank-stabilized), lora_fa",
        ("yes", "yes", "yes", "yes", "yes; several ranks or alphas: after a conversion to diffusers' form"),
    ),
    "dora input": Reading(
        "dora, `adapter.dora_axis=input` (default)",
        (
            "yes since 1.9; before, the lengths are ignored",
            "yes (versions of April 2024 refuse it)",
            "yes",
            "no: its loader of files takes lengths for those of outputs, and fails",
            "no: it leaves out the lengths",
        ),
    ),
    "dora output": Reading(
        "dora, `adapter.dora_axis=output`",
        (
            "no: a wrong result (lengths are taken for those of inputs)",
            "no: a slightly different result (divided by lengths of the unchanged weight)",
            "no: a slightly different result (as Forge)",
            "yes",
            "yes, after a conversion to diffusers' form",
        ),
    ),
    "loha": Reading("loha", ("yes since 1.5", "yes", "yes", "yes", _NO)),
    "lokr": Reading("lokr", ("yes since 1.5", "yes", "yes", "yes", _NO)),
    "ia3": Reading(
        "ia3",
        (
            "yes since 1.5; of convolutions only factors of inputs, which are those trained here",
            _NO,
            _NO,
            "no: its loader of files fails; a network made with the same preset loads it",
            _NO,
        ),
    ),
    "full": Reading("full", ("yes since 1.5", "yes", "yes", "yes", _NO)),
    "norm": Reading("LyCORIS' differences of normalizations (read, not trained)", ("yes", "yes", "yes", "yes", _NO)),
}


def kind_row(settings: AdapterSettings) -> str:
    """The row of :data:`READERS` for what these settings train."""
    if settings.kind == "dora":
        return f"dora {settings.dora_axis}"
    return "lora" if settings.kind == "lora_fa" else settings.kind


def reader_remark(settings: AdapterSettings) -> str | None:
    """What to say at the start of a run whose file not every program reads; None where all do."""
    reading = READERS[kind_row(settings)]
    if reading.is_universal:
        return None
    pairs = list(zip(PROGRAMS, reading.by, strict=True))
    able = [_with_reason(program, text, "yes") for program, text in pairs if text.startswith("yes")]
    unable = [_with_reason(program, text, _NO) for program, text in pairs if not text.startswith("yes")]
    axis = f", adapter.dora_axis={settings.dora_axis}" if settings.kind == "dora" else ""
    return (
        f"adapter.kind={settings.kind}{axis}: not every program reads the file. Not read right by "
        f"{'; '.join(unable)}. Read by {'; '.join(['Loraloom', *able])}"
    )


def _with_reason(program: str, text: str, answer: str) -> str:
    """``yes since 1.9`` as ``PROGRAM (since 1.9)``."""
    reason = text.removeprefix(answer).strip(" :,;()")
    return f"{program} ({reason})" if reason else program


def as_table() -> str:
    """The table for the docs, in Markdown."""
    rows = [("kind", "Loraloom", *PROGRAMS), tuple("---" for _ in range(len(PROGRAMS) + 2))]
    rows += [(reading.title, "yes", *reading.by) for reading in READERS.values()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
