"""Memory as the system tells it: what a process has for itself, without the files that it maps."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch

from loraloom.hardware import free_memory_bytes, own_memory_bytes, without_files

MIB = 2**20


def in_a_new_process(code: str) -> int:
    """The number that the code prints. Here, earlier tests have freed blocks that would be handed out again unseen."""
    imports = "from types import SimpleNamespace\nfrom loraloom.hardware import PeakMemory, own_memory_bytes\n"
    done = subprocess.run([sys.executable, "-c", imports + dedent(code)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_own_memory_grows_with_what_is_taken() -> None:
    grown = in_a_new_process("""
        before = own_memory_bytes()
        taken = b"\\x01" * (96 * 2**20)
        print(own_memory_bytes() - before)
    """)
    assert 80 * MIB < grown < 140 * MIB


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell them apart")
def test_mapped_files_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x01" * (96 * MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = own_memory_bytes()
        assert sum(mapped[place] for place in range(0, len(mapped), 4096)) == 96 * MIB / 4096
        assert own_memory_bytes() - before < 30 * MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux names it")
def test_own_memory_is_what_linux_calls_anonymous() -> None:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    anonymous = int(text.split("RssAnon:")[1].split()[0]) * 1024
    assert own_memory_bytes() == pytest.approx(anonymous, abs=16 * MIB)


def test_each_system_has_its_own_fields() -> None:
    linux = SimpleNamespace(rss=900, vms=5000, shared=340, text=3, lib=0, data=700, dirty=0)
    macos = SimpleNamespace(rss=900, vms=5000, pfaults=3, pageins=1)
    windows = SimpleNamespace(rss=900, vms=1300, peak_wset=1100, pagefile=1300, peak_pagefile=1500, private=1300)
    assert [without_files(used) for used in (linux, macos, windows)] == [560, 900, 1300]


def test_a_peak_is_seen_although_it_is_over() -> None:
    grown = in_a_new_process("""
        with PeakMemory(SimpleNamespace(type="cpu")) as memory:
            before = own_memory_bytes()
            taken = b"\\x01" * (96 * 2**20)
            memory._look()
            del taken
        print(memory.peak - before)
    """)
    assert grown > 80 * MIB


def test_free_memory_is_told_of_the_cpu_only_here() -> None:
    free = free_memory_bytes(torch.device("cpu"))
    assert free is not None and free > 0
    assert free_memory_bytes(torch.device("mps")) is None
