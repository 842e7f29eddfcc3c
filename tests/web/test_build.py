"""The committed build of the page is what its sources make."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loraloom.web.routers.page import PAGE
from work import HANGS_AFTER_S

SOURCES = Path(__file__).parents[2] / "web"
UNREACHABLE = (b"ENOTFOUND", b"ECONNREFUSED", b"ECONNRESET", b"ETIMEDOUT", b"EAI_AGAIN")
"""How npm says that it reaches no registry; whatever else it says is a fault."""
NODE, NPM = shutil.which("node"), shutil.which("npm")


def test_the_committed_build_is_that_of_the_sources(tmp_path: Path) -> None:
    if NODE is None or NPM is None:
        pytest.skip("no Node on this machine: the page is not built anew")
    sources = tmp_path / "web"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("node_modules"))
    there = subprocess.run(
        [NPM, "ci", "--no-audit", "--no-fund"], cwd=sources, capture_output=True, timeout=HANGS_AFTER_S
    )
    if any(sign in there.stderr for sign in UNREACHABLE):
        pytest.skip("the packages of the page cannot be had here: it is not built anew")
    assert there.returncode == 0, there.stderr.decode()
    subprocess.run(
        [NPM, "run", "build"],
        cwd=sources,
        check=True,
        timeout=HANGS_AFTER_S,
        env={**os.environ, "NODE_ENV": "production"},
    )
    assert _files(tmp_path / "src" / "loraloom" / "web" / "page") == _files(PAGE)


def test_the_page_is_small() -> None:
    """As many bytes as a browser is sent in all, compressed, where the server compresses."""
    import gzip

    assert sum(len(gzip.compress(found)) for found in _files(PAGE).values()) < 400_000


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
