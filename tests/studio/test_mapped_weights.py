"""Nothing writes into weights that lie in the checkpoint file: where the system maps them read-only, that would kill.

And a checkpoint that is cut off while a command reads it ends that command with a sentence.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from loraloom.formats.tensors import write_tensors
from random_loras import random_lora
from toys import toy_tensors

ALL_THAT_USES_WEIGHTS = """
import sys
from pathlib import Path

from loraloom.formats import file_bytes
from loraloom.generation.settings import GenerateSettings
from loraloom.studio.images import generate_images
from loraloom.studio.runs.training import run_training
from loraloom.training.settings import TrainSettings


def refused(descriptor):
    raise OSError(12, "Cannot allocate memory")


file_bytes.map_private = refused
folder = Path(sys.argv[1])
checkpoint = folder / "base.safetensors"
base = [
    f"checkpoint='{checkpoint}'", f"output='{folder / 'runs'}'", "device=cpu", "steps=1", "adapter.rank=2",
    f"dataset.folder='{folder / 'pictures'}'", "dataset.resolution=64", "saving.every_epochs=0", "ema.enabled=true",
]
for more in ("adapter.kind=dora", "adapter.kind=full"):
    run_training(TrainSettings.load(None, [*base, more]))
for mode in ("side", "merge"):
    wanted = [
        f"output_folder='{folder / mode}'", "width=64", "height=64", "steps=2", "device=cpu", f"lora_mode={mode}",
        f"lora_folders=['{folder}']", "prompt='a (red:1.2) thing <lora:painted:0.7>'",
    ]
    generate_images(checkpoint, GenerateSettings.load(None, wanted))
print("alive")
"""


def test_training_and_painting_write_no_weight_of_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", toy_tensors("sd1"))
    write_tensors(tmp_path / "painted.safetensors", random_lora("sd1", 1).file_tensors())
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "#d02020").save(tmp_path / "pictures" / "red.png")
    before = (tmp_path / "base.safetensors").read_bytes()
    done = run(ALL_THAT_USES_WEIGHTS, tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stderr[-2000:]
    assert (tmp_path / "base.safetensors").read_bytes() == before


MERGE_OF_A_FILE_THAT_SHRINKS = """
import os, sys
from pathlib import Path

from loraloom.cli.main import main
from loraloom.weights import merge

folder, whole = Path(sys.argv[1]), merge.merged_tensor


def cut_off(*arguments):
    os.truncate(folder / "base.safetensors", 300_000)
    return whole(*arguments)


merge.merged_tensor = cut_off
sys.argv = ["loraloom", "merge", "base.safetensors", "painted.safetensors:0.7", "-o", "merged.safetensors"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody shorten a mapped file")
def test_a_checkpoint_that_is_cut_off_under_a_merge(tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", toy_tensors("sd1"))
    write_tensors(tmp_path / "painted.safetensors", random_lora("sd1", 1).file_tensors())
    done = run(MERGE_OF_A_FILE_THAT_SHRINKS, tmp_path)
    assert done.returncode == 1
    told = " ".join((done.stdout + done.stderr).split())
    assert "base.safetensors: has become shorter while it was being read" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "painted.safetensors"]


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False, cwd=folder
    )
