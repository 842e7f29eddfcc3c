"""The embedded base as a file, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.studio.demo import make_checkpoint


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "base.safetensors")
