"""The benchmark of what a LoRA learns, and the small checkpoint that comes with the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loraloom.studio.demo import make_checkpoint


@pytest.fixture(scope="module")
def learning() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import learning  # type: ignore[import-not-found]

        yield learning
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def pictures(learning: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return learning.Pictures(make_checkpoint(tmp_path_factory.mktemp("base") / "base.safetensors"))
