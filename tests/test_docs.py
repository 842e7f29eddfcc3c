"""The documentation keeps its promises: links resolve, commands and settings exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import typer

from loraloom.cli.main import app
from loraloom.diffusion.samplers import SAMPLERS
from loraloom.generation.settings import GenerateSettings
from loraloom.settings import setting_rows
from loraloom.training.lr_schedule_names import LR_SCHEDULES
from loraloom.training.optimizer_names import OPTIMIZERS
from loraloom.training.settings import TrainSettings
from test_imports import ALLOWED, GROUND

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PAGES_WITH_SETTINGS = ["training", "objective", "resuming", "previews", "memory", "captions", "datasets", "generating"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


NAME = re.compile(r"`([a-z_]+)`")


def is_room(path: Path) -> bool:
    """Whether it is a module or a package of code, not a folder of data."""
    return path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").is_file())


def anchors_of(page: Path) -> set[str]:
    """The names by which the headings of a page can be linked to, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_pages_resolve() -> None:
    checked = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                other = page.parent / target if target else page
                assert anchor in anchors_of(other), f"{page.name}: {target}#{anchor}"
                checked += 1
    assert checked > 12


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8")):
            waiting.append((page.parent / target).resolve())
    pages = [page for page in PAGES if page.parent == ROOT / "docs"]
    assert [page.name for page in pages if page not in reached] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for command in re.findall(r"^\s*(?:\S*/)?loraloom ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert command in known, command


def test_settings_named_in_tables_exist() -> None:
    known = {row.path for cls in (TrainSettings, GenerateSettings) for row in setting_rows(cls)}
    known |= {row.path.removeprefix("dataset.") for row in setting_rows(TrainSettings)}
    for page in PAGES_WITH_SETTINGS:
        for line in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("| `"):
                for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", line.split("|")[1]):
                    assert name in known, f"{page}: {name}"


def test_every_command_is_in_the_documentation() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert len(commands) > 15
    assert [name for name in sorted(commands) if f"loraloom {name}" not in text] == []


def test_every_optimizer_and_schedule_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    named = {word for line in page.splitlines() if line.startswith("| ") for word in re.findall(r"\w+", line)}
    assert [name for name in (*OPTIMIZERS, *LR_SCHEDULES) if name not in named] == []


def test_every_sampler_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "generating.md").read_text(encoding="utf-8")
    table = page.partition("| sampler | for what |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == list(SAMPLERS)


def test_the_architecture_has_the_table_that_the_imports_keep() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| package | may import")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    said = {package: rule for packages, rule in rows for package in packages.split(", ")}
    assert set(said) == set(ALLOWED)
    for package, allowed in ALLOWED.items():
        if package not in ("studio", "web", "cli"):
            assert allowed == set(said[package].split(", ")) - {"nothing"}, package
    assert said["studio"] == "everything above this line" and ALLOWED["studio"] == set(said) - {"studio", "web", "cli"}
    for door in ("web", "cli"):
        assert said[door].startswith("studio, and the torch-free")
    assert "web" in said["cli"] and ALLOWED["web"] == {"studio"} and ALLOWED["cli"] == {"studio", "web"}
    ground = page.partition("\nground ")[2].partition("```")[0].split()
    assert set(ground) == GROUND and len(ground) == len(GROUND)


def test_the_architecture_knows_every_room_of_studio() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page.partition("## The rooms of studio")[2].partition("\n## ")[0]
    named = {name for line in rooms.splitlines() if line.startswith("| ") for name in NAME.findall(line.split("|")[2])}
    found = {path.stem for path in (ROOT / "src" / "loraloom" / "studio").glob("*") if is_room(path)}
    assert named == found


def test_the_architecture_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "loraloom"
    known = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    for name in re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`", page):
        if not name.startswith("tests/"):
            assert any(path == name or path.endswith("/" + name) for path in known), name


def test_the_settings_page_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_docs import PAGE, page
    finally:
        sys.path.pop(0)
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/make_docs.py"
