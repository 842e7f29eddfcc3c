"""The design's table of who may import whom, kept by reading the imports; and a command line that starts fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import loraloom

ROOT = Path(loraloom.__file__).parent
GROUND = {"errors", "settings", "registry", "events", "hardware", "randomness", "folders", "reading"}
GROUND |= {"idle", "control", "plain_data", "plain_text", "file_names", "actions", "setting_marks", "setting_rows"}
ACTIVITIES = {"formats", "diffusion", "models", "adapters", "data", "training", "generation", "weights", "recipes"}
ALLOWED = {
    "formats": set(),
    "diffusion": set(),
    "adapters": {"formats"},
    "data": {"formats"},
    "models": {"formats", "diffusion"},
    "generation": {"formats", "diffusion", "models", "adapters"},
    "training": {"formats", "diffusion", "models", "adapters", "data", "generation"},
    "weights": {"formats", "models", "adapters"},
    "recipes": {"formats", "diffusion", "adapters", "training"},
    "studio": ACTIVITIES,
    "web": {"studio"},
    "cli": {"studio", "web"},
}


def imports_of(path: Path) -> set[str]:
    """Dotted names under ``loraloom`` that a module imports anywhere: inside functions and for type checking too."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("loraloom"):
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("loraloom"))
    return {name.removeprefix("loraloom").removeprefix(".") for name in found} - {""}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_only_go_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imports_of(path):
        other = name.split(".")[0]
        if other in GROUND or other == package or other.startswith("__"):
            continue
        if package in ("cli", "web") and name.split(".")[1:2] == ["settings"]:
            continue  # the torch-free settings of any floor
        if package in {*GROUND, "__init__.py"} or package.endswith(".py"):
            assert package == "__main__.py", f"{path} is ground and imports {name}"
            continue
        assert other in ALLOWED[package], f"{path.relative_to(ROOT)} may not import loraloom.{name}"


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """For each module, by its dotted name under ``loraloom``, the modules that it imports anywhere."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: (imports_of(path) & set(paths)) - {name} for name, path in paths.items()}


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Groups of modules each of which reaches every other one."""
    reached = {name: _reached_from(name, graph) for name in graph}
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return groups - {()}


def _reached_from(name: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        left += (new := graph[left.pop()] - found)
        found |= new
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Counting what is imported inside functions and for types alone: such a circle is as hard to understand."""
    assert circles(import_graph()) == set()


def test_circles_of_lazy_and_type_only_imports_are_found(tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "a.py").write_text("def f():\n    from loraloom.house import b\n", encoding="utf-8")
    (tmp_path / "house" / "b.py").write_text("from loraloom.c import x\nimport loraloom.d\n", encoding="utf-8")
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from loraloom.a import f\n"
    (tmp_path / "c.py").write_text(typed, encoding="utf-8")
    (tmp_path / "d.py").write_text("import json\n", encoding="utf-8")
    assert circles(import_graph(tmp_path)) == {("a", "c", "house.b")}


def test_every_setting_is_documented() -> None:
    from loraloom.generation.settings import GenerateSettings
    from loraloom.settings import setting_rows
    from loraloom.training.settings import TrainSettings

    for cls in (TrainSettings, GenerateSettings):
        rows = list(setting_rows(cls))
        assert len(rows) > 10
        assert [row.path for row in rows if not row.doc] == []


@pytest.mark.parametrize(
    "module",
    ["loraloom.cli.main", "loraloom.web.serving", "loraloom.training.settings", "loraloom.generation.settings"],
)
def test_doors_and_settings_start_without_torch(module: str) -> None:
    heavy = "('torch', 'numpy', 'tokenizers', 'safetensors', 'diffusers', 'transformers', 'psutil', 'platformdirs')"
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_registries_resolve() -> None:
    from loraloom.diffusion.samplers import SAMPLERS
    from loraloom.formats.adapter_kinds import ADAPTERS
    from loraloom.models.family import FAMILIES
    from loraloom.training.lr_schedule_names import LR_SCHEDULES
    from loraloom.training.optimizer_names import OPTIMIZERS

    for registry in (ADAPTERS, SAMPLERS, FAMILIES, LR_SCHEDULES, OPTIMIZERS):
        assert len(registry) > 0
        for name in registry:
            assert registry.load(name) is not None
            assert registry[name].summary


def test_exported_names_exist() -> None:
    import importlib

    for path in modules():
        dotted = ".".join(("loraloom", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        if dotted.endswith("__main__"):
            continue
        module = importlib.import_module(dotted)
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{dotted}.{name}"


NAMES_THAT_RUN_CODE = {"import_module", "__import__", "eval", "exec", "find_class", "entry_points", "runpy", "pickle"}
WHERE_A_NAME_RUNS_CODE = {
    "registry.py",  # targets written in this package, and entry points of packages that a person installed
    "training/optimizer_names.py",  # optimizer.name, which data may not choose freely: see setting_marks.ClassPath
    "training/lr_schedules.py",  # lr_schedule.name, likewise
    "recipes/sd_scripts_optimizer.py",  # find_class: classes of two libraries that are named in the code
}


def test_code_is_run_by_its_name_in_a_few_places_only() -> None:
    """A new place must be looked at with one question: can a file that somebody else made choose the name?"""
    found = set()
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if (called | names) & NAMES_THAT_RUN_CODE:
            found.add(path.relative_to(ROOT).as_posix())
    assert found == WHERE_A_NAME_RUNS_CODE
