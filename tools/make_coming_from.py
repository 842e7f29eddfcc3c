"""Write the table of names in docs/coming-from.md: ``python tools/make_coming_from.py`` (a test holds it true)."""

from __future__ import annotations

from pathlib import Path

from loraloom.cli.words import worded
from loraloom.recipes.arguments import row_of
from loraloom.recipes.dreambooth import CONFIG_NAMES
from loraloom.recipes.gui import GUI_NAMES
from loraloom.recipes.names import (
    NETWORK_REASONS,
    SPELLINGS,
    TRAIN_NETWORK_ARGUMENTS,
    marked,
    reason_for,
)
from loraloom.recipes.rows import by_key
from loraloom.recipes.sd_scripts import TABLE

_TABLE = by_key(TABLE)
PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
BEGIN, END = "<!-- table of names: begin -->", "<!-- table of names: end -->"


def table() -> str:
    """The tables between the marks."""
    return "\n".join([*_arguments(), "", *_network_args(), "", *_form(), "", *_extension()])


def with_table(text: str) -> str:
    """The page with the tables in it renewed."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _here(name: str, *, network: bool = False) -> str:
    name = SPELLINGS.get(name, name)
    row = _TABLE.get(name) or row_of(name, network=network)
    if row is None or not (row.ours or name in _TABLE):
        return "none: " + worded(reason_for(name, network=network) or "")
    return row.remark or f"`{row.ours}`"


def _arguments() -> list[str]:
    lines = ["### Arguments of train_network.py", "", "| sd-scripts | here |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {_here(name)} |" for name in TRAIN_NETWORK_ARGUMENTS)]


def _network_args() -> list[str]:
    marks = [name for name in marked() if name not in TRAIN_NETWORK_ARGUMENTS and _part_of_network(name)]
    names = sorted({*marks, *NETWORK_REASONS})
    lines = ["### What stands in network_args", "", "| sd-scripts, LyCORIS | here |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {_here(name, network=True)} |" for name in names)]


def _part_of_network(name: str) -> bool:
    return marked()[name].startswith(("adapter.", "optimizer.block_lr.", "optimizer.loraplus"))


def _form() -> list[str]:
    own = {"epoch": "`epochs`", "lr_warmup": "`lr_schedule.warmup_steps`, as a share", "LoRA_type": "`adapter.kind`"}
    lines = ["### Names that only kohya_ss has", "", "| kohya_ss | here |", "|---|---|"]
    rows = {name: _here(other) for name, other in GUI_NAMES.items()} | own
    return [*lines, *(f"| `{name}` | {rows[name]} |" for name in sorted(rows))]


def _extension() -> list[str]:
    lines = ["### Names in db_config.json", "", "| sd_dreambooth_extension | here |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {_here(CONFIG_NAMES[name])} |" for name in sorted(CONFIG_NAMES))]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
