"""A file larger than the memory opens and is read: nothing that the system counts is as large as the file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loraloom.formats import file_bytes
from loraloom.formats.entries import TensorInfo
from loraloom.formats.safetensors_file import safetensors_header
from loraloom.formats.tensors import open_tensors, write_tensors

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process's memory")
GIB = 2**30


def sparse(path: Path, gib: int = 3) -> Path:
    """A file of so many tensors of 1 GiB, all zeros, that takes a few blocks of the disk."""
    infos = {f"w{number}": TensorInfo(torch.float16, (GIB // 2,)) for number in range(gib)}
    header = safetensors_header(infos, {})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + gib * GIB)
    return path


def counted_bytes() -> int:
    """Memory that the system counts as this process's, whether touched or not: private and writable."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmData:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


@linux
def test_opening_and_reading_count_nothing_of_the_size_of_the_file(tmp_path: Path) -> None:
    before = counted_bytes()
    file = open_tensors(sparse(tmp_path / "a.safetensors"))
    assert file.info("w2").nbytes == GIB
    assert counted_bytes() - before < GIB // 8
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert {line.split()[1] for line in maps.splitlines() if line.endswith("a.safetensors")} == {"r--s"}


LIMITED = """
import resource, sys
from pathlib import Path
from loraloom.formats.tensors import open_tensors

status = Path("/proc/self/status").read_text()
data = 1024 * int(status.split("VmData:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (data + 2**28, data + 2**28))
file = open_tensors(Path(sys.argv[1]))
print([float(file.mapped(f"w{number}")[-1]) for number in range(3)])
"""


@linux
def test_a_file_larger_than_the_memory_that_is_allowed(tmp_path: Path) -> None:
    """Where the system counts private mappings (a limit, strict overcommit), weights are seen through a shared one."""
    path = sparse(tmp_path / "a.safetensors")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.0, 0.0, 0.0]\n", "")


def test_weights_that_cannot_be_mapped_privately_are_mapped_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(file_bytes, "map_private", refused)
    weights = {"a": torch.randn(3, 40), "b": torch.arange(7).to(torch.bfloat16), "none": torch.empty(0, 2)}
    write_tensors(tmp_path / "a.ckpt", weights)
    file = open_tensors(tmp_path / "a.ckpt")
    mapped = {name: file.mapped(name) for name in file}
    file.close()
    del file
    for name, tensor in weights.items():
        assert torch.equal(mapped[name], tensor)
    assert not list(recwarn)
