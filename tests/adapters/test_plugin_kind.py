"""A kind of adapter from another package: one file and one line, and every command knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import loraloom
from loraloom.formats.tensors import open_tensors, write_tensors
from toys import toy_tensors
from work import HANGS_AFTER_S

KIND = '''
"""A kind that multiplies the weights of each output channel by a factor, written as its difference from 1."""

from __future__ import annotations

import torch
from torch import nn

from loraloom.adapters.adapter import Adapter, fitted
from loraloom.formats.adapter_kinds import Traits
from loraloom.formats.key_layout import VECTOR, KeyLayout
from loraloom.settings import Settings


class GainSettings(Settings):
    start: float = 0.0
    """Where the difference starts."""


class GainAdapter(Adapter):
    kind = "gain"
    layout = KeyLayout("Gain", own={"gain": VECTOR})
    args = GainSettings
    needs_base = True
    traits = Traits(has_rank=False)

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(gain)

    @classmethod
    def create(cls, target, settings, rank, alpha, *, seed, base):
        return cls(torch.full((target.shape[0],), cls.own_args(settings).start))

    def change(self, base):
        return base.float() * self.gain.float().reshape(-1, *(1 for _ in base.shape[1:]))

    @torch.no_grad()
    def scale_by(self, ratio):
        self.gain.mul_(ratio)

    def norm(self):
        return torch.linalg.vector_norm(self.gain.detach().float())

    def tensors(self):
        return {"gain": self.gain.detach()}

    @classmethod
    def from_tensors(cls, tensors, target):
        return cls(fitted(tensors, "gain", target.shape[:1], target))
'''


@pytest.fixture
def loom(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs commands, one after another in one process that has the package installed; they stop at the first error."""
    site = tmp_path / "site"
    (site / "gain_kind-1.0.dist-info").mkdir(parents=True)
    (site / "gain_kind.py").write_text(KIND, encoding="utf-8")
    (site / "gain_kind-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gain-kind\nVersion: 1.0\n")
    points = "[loraloom.adapter_kind]\ngain = gain_kind:GainAdapter\n"
    (site / "gain_kind-1.0.dist-info" / "entry_points.txt").write_text(points, encoding="utf-8")
    source = Path(loraloom.__file__).parents[1]
    paths = os.pathsep.join([str(source), str(site)])
    environment = {**os.environ, "PYTHONPATH": paths, "NO_COLOR": "1", "COLUMNS": "200", "HOME": str(tmp_path)}
    code = "import json, sys; from loraloom.cli.main import app\n"
    code += "for line in json.load(sys.stdin): app(args=line, standalone_mode=False)"

    def run(*commands: list[object]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([[str(word) for word in words] for words in commands]),
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=environment,
            timeout=HANGS_AFTER_S,
        )

    return run


Loom = Callable[..., subprocess.CompletedProcess[str]]


def test_a_kind_of_another_package_trains_saves_merges_and_paints(loom: Loom, tmp_path: Path) -> None:
    base, merged = tmp_path / "base.safetensors", tmp_path / "merged.safetensors"
    write_tensors(base, toy_tensors("sd1"))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "#c03020").save(tmp_path / "pictures" / "red.png")
    (tmp_path / "pictures" / "red.txt").write_text("a red square", encoding="utf-8")
    train = [
        "train",
        f"checkpoint={base}",
        "dataset.folder=pictures",
        "dataset.resolution=64",
        "device=cpu",
        "epochs=3",
    ]
    train += [
        "epochs=3",
        "name=gain",
        "adapter.kind=gain",
        "adapter.args.start=0.3",
        "adapter.dropout=0.1",
        "optimizer.lr=0.02",
    ]
    paint = ["generate", base, "width=64", "height=64", "steps=2", "seed=5", "device=cpu", "lora_folders=['.']"]
    lora = tmp_path / "gain.safetensors"
    done = loom(
        [*train, "saving.precision=float"],
    )
    assert done.returncode == 0, done.stderr
    made = next((tmp_path / "runs").rglob("gain.safetensors"))
    lora.write_bytes(made.read_bytes())
    assert "adapter.dropout has no effect with adapter.kind=gain" in done.stdout + done.stderr
    assert "Read by Loraloom" in done.stdout + done.stderr

    # What was trained is what the file holds, and it says no more of itself than is true.
    with open_tensors(lora) as file:
        gains = {key.removesuffix(".gain"): file[key].float() for key in file}
        metadata = dict(file.metadata)
    assert not [key for key in gains if "." in key]
    assert metadata["ss_network_module"] == "gain_kind"
    assert json.loads(metadata["ss_network_args"]) == {"start": 0.3}
    assert all(bool((gain != 0.3).any()) and float((gain - 0.3).abs().max()) < 0.2 for gain in gains.values())

    # Every command of one process knows the kind.
    done = loom(
        ["inspect", lora, "--layers", "--json"],
        ["merge", base, f"{lora}:0.7:0.7", "-o", merged, "--precision", "float"],
        [*paint, "prompt=a square", "output_folder=plain"],
        [*paint, "prompt=a square <lora:gain:0.7>", "output_folder=beside", "lora_mode=side"],
        [*paint, "prompt=a square <lora:gain:0.7>", "output_folder=inside", "lora_mode=merge"],
    )
    assert done.returncode == 0, done.stderr
    assert '"kind": "Gain"' in done.stdout and '"rank": "none"' in done.stdout

    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    weight = toy_tensors("sd1")[key]
    with open_tensors(merged) as file:
        torch.testing.assert_close(file[key], weight * (1 + 0.7 * gains[name][:, None]))

    plain, beside, inside = (
        Image.open(next((tmp_path / folder).glob("*.png"))).tobytes() for folder in ("plain", "beside", "inside")
    )
    assert plain != beside
    apart = [abs(one - other) for one, other in zip(beside, inside, strict=True)]
    assert max(apart) <= 1


def test_what_a_kind_of_another_package_does_not_know_is_refused(loom: Loom, tmp_path: Path) -> None:
    write_tensors(tmp_path / "base.safetensors", toy_tensors("sd1"))
    told = loom(["train", "checkpoint=base.safetensors", "adapter.kind=gain", "adapter.args.begin=2"])
    assert told.returncode and "adapter.args: unknown setting 'begin'" in told.stderr

    told = loom(["train", "checkpoint=base.safetensors", "adapter.kind=grain"])
    assert told.returncode and "'full' or 'gain'" in told.stderr

    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.gain"
    write_tensors(tmp_path / "gain.safetensors", {key: torch.ones(64)})
    told = loom(["convert", "gain.safetensors", "-o", "out.safetensors", "--to", "diffusers"])
    assert told.returncode and "is Gain; diffusers reads LoRA and DoRA only" in told.stderr


def test_a_package_that_cannot_be_imported_is_named(loom: Loom, tmp_path: Path) -> None:
    (tmp_path / "site" / "gain_kind.py").write_text("import a_module_that_is_not_there\n", encoding="utf-8")
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.gain"
    write_tensors(tmp_path / "gain.safetensors", {key: torch.ones(64)})
    told = loom(["inspect", "gain.safetensors"])
    assert told.returncode and "adapter kind 'gain', which another package adds (gain_kind:GainAdapter)" in told.stderr
