"""Write docs/settings.md from the settings classes: ``python tools/make_docs.py`` (a test holds it true)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraloom.generation.settings import GenerateSettings
from loraloom.settings import Settings, setting_rows
from loraloom.training.settings import TrainSettings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

Every setting of `loraloom train` and `loraloom generate`, as `key=value` on the command line or in a TOML file. The
same list on the command line: `loraloom settings`, `loraloom settings generate`. Made by `tools/make_docs.py`.
"""


def page() -> str:
    """The text of the page."""
    sections = [*_section("Training", TrainSettings), *_section("Generating", GenerateSettings)]
    return "\n".join([HEAD, *sections, *_choices(TrainSettings), *_choices(GenerateSettings)])


def _choices(cls: type[Settings]) -> list[str]:
    """What the names mean that a setting may have, for each list of names once."""
    lines: list[str] = []
    for row in setting_rows(cls):
        if not any(row.choices.values()) or row.path in ("hires_sampler", "hires_schedule", "preview.sampler"):
            continue
        lines += [f"### Choices of `{row.path}`", "", "| name | meaning |", "|---|---|"]
        lines += [f"| {name} | {summary} |" for name, summary in row.choices.items()]
        lines += [""]
    return lines


def _section(title: str, cls: type[Settings]) -> list[str]:
    lines = [f"## {title}", "", "| setting | value | default | meaning | in sd-scripts |", "|---|---|---|---|---|"]
    for row in setting_rows(cls):
        default = "required" if row.required else _shown(row.default)
        cells = (f"`{row.path}`", row.values, default, row.doc, ", ".join(f"`{name}`" for name in row.kohya))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(f"`{item}`" for item in value) or "empty"
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
