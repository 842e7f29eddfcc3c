"""What ``loraloom plan`` predicts of a run's memory, against what two real steps then take.

    python benchmarks/plan.py [CASE ...] [--folder /big/disk]

Checkpoints of random weights with the layout of SD 1.5 (fp32 and fp16), and the small checkpoint of the package, each
case planned in a process of its own: U-Net and text encoder, rank 16, batch 1 at 256 px unless the case says otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from full_size_checkpoints import write
from harness import record

from loraloom.formats.adapter_file import write_adapter_file
from loraloom.models.checkpoint import open_checkpoint
from loraloom.studio.demo import make_checkpoint

CASES: dict[str, tuple[str, list[str]]] = {
    "fp32": ("sd15", []),
    "fp32, selective": ("sd15", ["gradient_checkpointing=selective"]),
    "fp32, full": ("sd15", ["gradient_checkpointing=full"]),
    "fp32, 4 images": ("sd15", ["batch_size=4"]),
    "fp32, 512 px, full": ("sd15", ["dataset.resolution=512", "gradient_checkpointing=full"]),
    "fp32, a base LoRA": ("sd15", ["adapter.base_loras=['base.safetensors']"]),
    "fp32, int8": ("sd15", ["quantize=int8"]),
    "fp32, nf4": ("sd15", ["quantize=nf4"]),
    "fp16 file": ("sd15-fp16", []),
    "fp16 file, kept": ("sd15-fp16", ["keep_file_precision=true"]),
    "fp16 file, kept, full": ("sd15-fp16", ["keep_file_precision=true", "gradient_checkpointing=full"]),
    "fp16 file, int8": ("sd15-fp16", ["quantize=int8"]),
    "embedded, 4 images of 128 px": ("embedded", ["dataset.resolution=128", "batch_size=4"]),
    "embedded, 4 images of 128 px, full": (
        "embedded", ["dataset.resolution=128", "batch_size=4", "gradient_checkpointing=full"],
    ),
}  # fmt: skip


def material(folder: Path) -> None:
    """Eight pictures of 512 px with captions."""
    pictures = folder / "pictures" / "1_noise"
    pictures.mkdir(parents=True)
    for index in range(8):
        noise = torch.randint(0, 256, (512, 512, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.numpy()).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"noise number {index}", encoding="utf-8")


def base_lora(path: Path, checkpoint: Path) -> None:
    """A LoRA of rank 16 on all the layers that are trained by default."""
    from loraloom.adapters.attach import create_adapters
    from loraloom.adapters.settings import AdapterSettings

    opened = open_checkpoint(checkpoint)
    targets = opened.family.adapter_targets(opened.infos)
    adapters = create_adapters(AdapterSettings(rank=16), targets, seed=0)
    write_adapter_file(path, adapters.file_tensors(), metadata={}, dtype=torch.float32)


def planned(folder: Path, checkpoint: Path, overrides: list[str]) -> dict[str, Any]:
    """One plan: MiB predicted and measured, and how far the prediction is off."""
    settings = [
        f"checkpoint={checkpoint}", "dataset.folder=pictures", "name=planned", "steps=8", "batch_size=1", "device=cpu",
        "mixed_precision=no", "dataset.resolution=256", "adapter.rank=16", *overrides,
    ]  # fmt: skip
    command = [sys.executable, "-m", "loraloom", "plan", *settings, "--json"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{found.stderr}")
    data = json.loads(found.stdout)
    predicted, measured = data["memory"]["peak"], data["trial"]["peak"]
    return {
        "predicted_mib": round(predicted / 2**20),
        "measured_mib": round(measured / 2**20),
        "off": round(predicted / measured - 1, 3),
        "mapped_mib": round(data["memory"]["mapped"] / 2**20),
    }


def main() -> None:
    """Write results/plan.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--folder", type=Path, help="where 6 GB may be written for a while")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="loraloom-plan-", dir=options.folder) as temporary:
        folder = Path(temporary)
        material(folder)
        files = {"embedded": make_checkpoint(folder / "embedded.safetensors")}
        for case in options.cases:
            layout, overrides = CASES[case]
            if layout not in files:
                files[layout] = folder / f"{layout}.safetensors"
                write(layout, files[layout], folder / "unused")
            if any("base_loras" in override for override in overrides):
                base_lora(folder / "base.safetensors", files[layout])
            figures[case] = planned(folder, files[layout], overrides)
            print(case, figures[case], file=sys.stderr, flush=True)
    record("plan", {"cases": figures})


if __name__ == "__main__":
    main()
