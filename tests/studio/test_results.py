"""One function makes JSON-ready data of every result, and JSON takes it."""

from __future__ import annotations

import importlib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
from typer.testing import CliRunner

import loraloom.studio
from loraloom.cli.main import app
from loraloom.control import Request
from loraloom.data.settings import DatasetSettings
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.settings import Settings
from loraloom.studio.results import to_record
from random_loras import random_lora

ROOT = Path(loraloom.studio.__file__).parent
STUDIO = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py") if path.stem != "__init__"
)
WEIGHTS = {
    "anatomy": ["Anatomy"],
    "checkpoint_merge": ["CheckpointMergeReport"],
    "combine": ["CombineReport"],
    "convert": ["ConvertReport"],
    "extract": ["ExtractReport"],
    "inspect": ["FileReport"],
    "merge": ["MergeReport"],
    "metadata": ["MetadataEdit"],
    "resize": ["ResizeReport"],
}
PLANS = ["Change", "Plan"]
CONTAINERS = (tuple, list, dict, set, frozenset, Mapping, Sequence)
PLAIN_DATA = (
    "Change.overrides",
    "Chosen.value",
    "FormCheck.differs",
    "FormField.default",
    "Job.result",
    "JobRecord.settings",
    "JobStatus.result",
    "PlanAnswer.",
)
"""Typed as anything: what a settings file can hold, or what has become a record already."""
NO_RESULTS = {"Home", "JobKind", "Loading", "Machine", "Pictures", "Recipe", "RunFolder", "RunProcess"}
"""What works rather than tells."""


@dataclass(frozen=True)
class Sample:
    path: Path
    numbers: tuple[float, ...]
    by_size: Mapping[tuple[int, int], int]
    wish: Request
    settings: GenerateSettings
    names: frozenset[str]
    when: datetime
    none: None = None
    own: object = field(default=torch, repr=False)


def test_what_json_lacks_has_a_form() -> None:
    sample = Sample(
        Path("a") / "b.png",
        (0.3, float("nan"), float("-inf")),
        {(640, 384): 7},
        Request.LEAVE,
        GenerateSettings(prompt="a cat", lora_folders=(Path("x"),), cfg_scale=3.5),
        frozenset({"b", "a"}),
        datetime(2024, 5, 6, 7, 8),
    )
    record = to_record(sample)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["path"] == str(Path("a") / "b.png")
    assert record["numbers"] == [0.3, None, None]
    assert record["by_size"] == {"640x384": 7}
    assert record["wish"] == "leave"
    assert (record["settings"]["cfg_scale"], record["settings"]["lora_folders"]) == (3.5, ["x"])
    assert record["names"] == ["a", "b"]
    assert record["when"] == "2024-05-06T07:08:00"
    assert "own" not in record
    with pytest.raises(TypeError, match="Tensor is no data"):
        to_record({"x": [torch.ones(3)]})


def results() -> list[type]:
    """Every dataclass that a module of the studio offers, and what its functions give of other floors."""
    found: dict[str, type] = {}
    for name in STUDIO:
        module = importlib.import_module(f"loraloom.studio.{name}")
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if isinstance(value, type) and is_dataclass(value) and public not in NO_RESULTS:
                found[f"{name}.{public}"] = value
    for module_name, names in WEIGHTS.items():
        module = importlib.import_module(f"loraloom.weights.{module_name}")
        found |= {f"weights.{name}": getattr(module, name) for name in names}
    plan = importlib.import_module("loraloom.training.plan")
    found |= {f"plan.{name}": getattr(plan, name) for name in PLANS}
    return list(found.values())


def problems_of(annotation: Any, where: str, seen: set[Any]) -> list[str]:
    """Why a value of this type might have no record."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (None, type(None), bool, int, float, str, Any, Path, datetime, object):
        return [] if annotation not in (Any, object) else [f"{where}: {annotation} may be anything"]
    if origin is typing.Literal:
        return []
    if origin in (
        typing.Union,
        types.UnionType,
        tuple,
        list,
        dict,
        set,
        frozenset,
        Mapping,
        Sequence,
        typing.Annotated,
    ):
        inside = arguments[:1] if origin is typing.Annotated else arguments
        return [problem for one in inside if one is not Ellipsis for problem in problems_of(one, where, seen)]
    if isinstance(annotation, type):
        if issubclass(annotation, Enum | Settings) or annotation in seen:
            return []
        if is_dataclass(annotation):
            return field_problems(annotation, seen)
    return [f"{where}: {annotation}"]


def field_problems(kind: type, seen: set[Any]) -> list[str]:
    seen.add(kind)
    module = importlib.import_module(kind.__module__)
    hints = typing.get_type_hints(kind, vars(module))
    found = []
    for one in fields(kind):
        if one.repr:
            found += problems_of(hints[one.name], f"{kind.__name__}.{one.name}", seen)
    return found


@pytest.mark.parametrize("kind", results(), ids=lambda kind: kind.__name__)
def test_every_public_result_has_a_record(kind: type) -> None:
    assert [one for one in field_problems(kind, set()) if not one.startswith(PLAIN_DATA)] == []


def test_real_results(tmp_path: Path) -> None:
    from loraloom.studio import weights
    from loraloom.studio.datasets import check_dataset, preview_captions
    from loraloom.studio.library import scan, search
    from loraloom.studio.tokens import count_tokens

    tensors = random_lora("sd1", 3, conv=False).file_tensors()
    broken = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[broken] = tensors[broken] * float("nan")
    write_tensors(tmp_path / "broken.safetensors", tensors)
    (tmp_path / "data" / "1_a").mkdir(parents=True)
    from PIL import Image

    Image.new("RGB", (70, 64)).save(tmp_path / "data" / "1_a" / "x.png")
    dataset = DatasetSettings(folder=tmp_path / "data", resolution=64)
    made: list[Callable[[], object]] = [
        lambda: weights.inspect_file(tmp_path / "broken.safetensors", layers=True, hashes=True),
        lambda: check_dataset(dataset),
        lambda: preview_captions(dataset),
        lambda: scan([tmp_path], index=tmp_path / "index.sqlite"),
        lambda: search([], index=tmp_path / "index.sqlite"),
        lambda: count_tokens("sd1", GenerateSettings(prompt="a cat AND a dog")),
    ]
    for make in made:
        record = to_record(make())
        assert json.loads(json.dumps(record, allow_nan=False)) == record

    printed = CliRunner().invoke(app, ["inspect", str(tmp_path / "broken.safetensors"), "--layers", "--json"])
    (told,) = json.loads(printed.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert told["path"] == str(tmp_path / "broken.safetensors")
    assert None in [layer["norm"] for layer in told["anatomy"]["layers"]]
