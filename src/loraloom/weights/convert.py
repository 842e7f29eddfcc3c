"""A LoRA file in another dialect: the same change of the same layers, under the names that another program reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraloom.control import Control, each_of, keep_going
from loraloom.errors import OutputError
from loraloom.events import Listener, ignore
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.adapter_writer import OUTPUT_DIALECTS, WrittenLora, check_output, write_lora
from loraloom.weights.lora_layers import file_precision, named_layers, network_facts, related_metadata
from loraloom.weights.merge import PRECISIONS, is_same_or_inside

__all__ = ["ConvertReport", "convert_lora"]


@dataclass(frozen=True)
class ConvertReport:
    """``source``: the dialect that was read; ``beside``: files read with it; ``words`` of textual inversion."""

    written: WrittenLora
    source: str
    family: str
    beside: tuple[Path, ...]
    words: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file that was written."""
        return self.written.path

    @property
    def layers(self) -> int:
        """How many layers it holds."""
        return self.written.layers

    @property
    def embeddings(self) -> tuple[Path, ...]:
        """Where the words' vectors are: the file itself (kohya), a file for each word beside it (diffusers)."""
        return self.written.embeddings


def convert_lora(
    lora: Path,
    output: Path,
    *,
    to: str = "kohya",
    precision: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ConvertReport:
    """Write a LoRA of any dialect as ``to``: ``kohya`` or ``diffusers`` (PEFT's names).

    Layers keep their values. For diffusers alpha is multiplied into the factors and the layers of a part get one rank
    (see :func:`~loraloom.formats.adapter_writer.write_lora`); it reads LoRA and DoRA, so other kinds are an
    AdapterError. ``precision`` left out: the file's own. Raises OutputError for an output that is the file itself.
    ``control`` is heeded between two layers, of which ``listener`` hears, and between two tensors that are written.
    """
    check_output(output)
    file = read_adapter_file(lora)
    if any(is_same_or_inside(output, path) for path in (lora, *file.beside)):
        raise OutputError(f"{output} is one of the inputs", "give the result a name of its own")

    named = named_layers(file)
    ranks: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for name, roles in each_of("layers", named.layers.items(), listener, control):
        if "down" in roles:
            # Tucker's kernel is in the middle tensor; the one below it is 1x1.
            kernel = roles["down"].shape[2:] if "mid" not in roles else roles["mid"].shape[2:]
            ranks[any(size > 1 for size in kernel)][name] = len(roles["down"])
    metadata = related_metadata(file, named.family)

    # What the file says of its own rank stays; it is counted only where the file is silent.
    if "ss_network_dim" not in metadata and (ranks[0] or ranks[1]):
        metadata |= network_facts(*ranks)
    elif "ss_network_args" in file.metadata:
        metadata["ss_network_args"] = file.metadata["ss_network_args"]

    written = write_lora(
        output,
        named.layers,
        metadata=metadata,
        dtype=file_precision(file) if precision is None else PRECISIONS[precision],
        dialect=OUTPUT_DIALECTS[to],
        targets=named.targets,
        words=file.embeddings,
        source=str(lora),
        control=control,
    )
    family = named.family.title if named.family is not None else "an unknown model"
    return ConvertReport(written, file.dialect.title, family, file.beside, tuple(file.embeddings))
