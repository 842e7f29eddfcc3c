"""The documentation keeps its promises: links resolve, commands and settings exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import typer

from loraloom.cli.main import app
from loraloom.generation.settings import GenerateSettings
from loraloom.settings import setting_rows
from loraloom.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for command in re.findall(r"^\s*(?:\S*/)?loraloom ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert command in known, command


def test_settings_named_in_tables_exist() -> None:
    known = {row.path for cls in (TrainSettings, GenerateSettings) for row in setting_rows(cls)}
    known |= {row.path.removeprefix("dataset.") for row in setting_rows(TrainSettings)}
    for page in ("training", "datasets", "generating"):
        for line in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("| `"):
                for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", line.split("|")[1]):
                    assert name in known, f"{page}: {name}"


def test_the_settings_page_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_docs import PAGE, page
    finally:
        sys.path.pop(0)
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/make_docs.py"
