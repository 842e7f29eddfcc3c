"""Full-size checkpoints of every family: recognised, loaded, saved again, compared; time and peak memory of each step.

For each layout a checkpoint of random weights is written that has exactly the keys, shapes and types of the real
file, into a temporary folder, one at a time. Every step runs in a process of its own, so that times include imports
and peaks are that step's alone::

    python benchmarks/full_size_checkpoints.py sd15 sd21 sdxl --folder /big/disk

``sd15-fp16`` is SD 1.5 with its weights in half precision, as most people have it. Peak memory is given twice: what
the process took for itself (anonymous memory), and everything resident, which counts the mapped file as well although
the system can drop those pages at any moment.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = ("sd15-fp16", "sd15", "sd21", "sdxl")
TABLES_STAY_FP32 = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")

Facts = dict[str, Any]


# ------------------------------------------------------------------------------------------------ steps


def write(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """A checkpoint of random weights in the real layout."""
    import torch

    from loraloom.formats.tensors import TensorInfo, TensorSource, write_tensors
    from loraloom.models.layouts import noise_schedule_layout, random_tensor

    sys.path.insert(0, str(ROOT / "tests"))
    from layouts import read_layout

    tables = noise_schedule_layout()
    sources = []
    for name, (dtype, shape) in read_layout(layout.removesuffix("-fp16")).items():
        if layout.endswith("-fp16") and dtype == torch.float32 and name.startswith(TABLES_STAY_FP32):
            dtype = torch.float16

        def load(name: str = name, shape: tuple[int, ...] = shape, dtype: torch.dtype = dtype) -> torch.Tensor:
            return tables[name] if name in tables else random_tensor(name, shape, ("full size", layout), dtype)

        sources.append(TensorSource(name, TensorInfo(dtype, shape), load))
    write_tensors(checkpoint, sources)
    return {"tensors": len(sources), "bytes": checkpoint.stat().st_size}


def recognise(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """The family, from names and shapes."""
    from loraloom.models.checkpoint import open_checkpoint

    return {"family": open_checkpoint(checkpoint).family.name}


def load(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """Ready for use on the CPU, weights mapped in the file's precision."""
    import torch

    from loraloom.models.loaded import load_model

    # SD 2 does not say what it predicts; the probe that finds out is timed in a step of its own.
    model = load_model(checkpoint, device=torch.device("cpu"), keep_file_precision=True, prediction="epsilon")
    parameters = sum(p.numel() for part in model.parts.values() for p in part.parameters())
    return {"parameters": parameters, "lora_layers": sum(not target.extended for target in model.targets)}


def infer(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """One text, one U-Net step and one decoding of a 256 px picture from the mapped weights, computing in fp32."""
    import torch

    from loraloom.models.loaded import load_model

    model = load_model(checkpoint, device=torch.device("cpu"), keep_file_precision=True)
    with torch.no_grad():
        text = model.encode_text(["a photo of a cat"])
        latents = model.denoise(torch.randn(1, 4, 32, 32), torch.tensor([500]), text)
        picture = model.decode_latents(latents)
    return {"finite": bool(picture.isfinite().all()), "prediction": model.prediction}


def train(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """Two steps of a rank-4 LoRA on two 64 px pictures, weights mapped, fp32; the file is read back."""
    import time as clock

    from PIL import Image

    from loraloom.adapters.attach import read_adapters
    from loraloom.events import Event, StepFinished
    from loraloom.models.checkpoint import open_checkpoint
    from loraloom.studio.runs.training import run_training
    from loraloom.training.settings import TrainSettings

    pictures = checkpoint.parent / "pictures" / "1_square"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, colour in (("red", "#d02020"), ("blue", "#2030d0")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{name}.png")
    settings = TrainSettings.load(
        None,
        [
            f"checkpoint='{checkpoint}'",
            f"output='{checkpoint.parent / 'runs'}'",
            f"dataset.folder='{pictures}'",
            "dataset.resolution=64",
            "steps=2",
            "adapter.rank=4",
            "mixed_precision=no",
            "keep_file_precision=true",
            "prediction=epsilon",
            "saving.every_epochs=0",
        ],
    )
    steps: list[StepFinished] = []

    def listener(event: Event) -> None:
        if isinstance(event, StepFinished):
            steps.append(event)

    began = clock.perf_counter()
    result = run_training(settings, listener=listener)
    opened = open_checkpoint(checkpoint)
    adapters = read_adapters(result.lora, opened.family.adapter_targets(opened.infos))
    return {
        "losses": [round(event.loss, 4) for event in steps],
        "seconds_per_step": round(steps[-1].seconds, 2),
        "training_seconds": round(clock.perf_counter() - began, 1),
        "reloaded_layers": len(adapters),
        "changed_layers": sum(float(adapter.delta().abs().max()) > 0 for _, adapter in adapters.items()),
        "lora_mib": round(result.lora.stat().st_size / 2**20, 2),
    }


def save(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """Load, and write the loaded model again."""
    import torch

    from loraloom.models.loaded import load_model
    from loraloom.models.saving import save_checkpoint

    model = load_model(checkpoint, device=torch.device("cpu"), keep_file_precision=True, prediction="epsilon")
    save_checkpoint(model, copy)
    return {"bytes": copy.stat().st_size}


def compare(layout: str, checkpoint: Path, copy: Path) -> Facts:
    """Key sets, types, shapes and bits of the two files."""
    import torch

    from loraloom.formats.tensors import open_tensors

    first, second = open_tensors(checkpoint), open_tensors(copy)
    equal = all(
        first.info(name) == second.info(name) and torch.equal(_bits(first[name]), _bits(second[name]))
        for name in first
        if name in second
    )
    return {"same_keys": set(first) == set(second), "bit_equal": equal}


def _bits(tensor: Any) -> Any:
    import torch

    return tensor.reshape(-1).view(torch.uint8)


STEPS: dict[str, Callable[[str, Path, Path], Facts]] = {
    step.__name__: step for step in (write, recognise, load, infer, train, save, compare)
}


# ------------------------------------------------------------------------------------------------ measuring


class AnonymousPeak(threading.Thread):
    """Samples this process's anonymous memory (Linux; elsewhere the peak stays None)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: int | None = None

    def run(self) -> None:
        status = Path("/proc/self/status")
        while status.exists():
            for line in status.read_text(encoding="utf-8").splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak or 0, int(line.split()[1]) * 1024)
            time.sleep(0.01)


def resident_peak() -> int | None:
    """Largest resident size of this process in bytes, mapped files included."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def run_step(step: str, layout: str, checkpoint: Path, copy: Path, started: float) -> None:
    """In the child process: do one step and print what was measured as one line of JSON."""
    memory = AnonymousPeak()
    memory.start()
    facts = STEPS[step](layout, checkpoint, copy)
    measured = {
        "seconds": time.time() - started,
        "cpu_seconds": time.process_time(),
        "anonymous": memory.peak,
        "resident": resident_peak(),
    }
    print(json.dumps(measured | facts))


def measure(step: str, layout: str, checkpoint: Path, copy: Path) -> Facts:
    """In the parent: run one step in a process of its own; seconds count from the start of that process."""
    command = [sys.executable, __file__, "--step", step, "--checkpoint", str(checkpoint), "--copy", str(copy), layout]
    command += ["--started", repr(time.time())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="*", default=list(LAYOUTS), help=f"of {', '.join(LAYOUTS)}")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (up to 14 GB)")
    parser.add_argument("--suffix", default=".safetensors", choices=[".safetensors", ".ckpt"])
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--copy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.layouts[0], options.checkpoint, options.copy, options.started)
        return
    results: dict[str, dict[str, Facts]] = {}
    print(f"{'layout':10} {'step':10} {'seconds':>8} {'of CPU':>8} {'own MiB':>8} {'resident MiB':>13}  facts")
    for layout in options.layouts:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as folder:
            checkpoint, copy = (Path(folder) / f"{name}{options.suffix}" for name in ("model", "copy"))
            results[layout] = {}
            for step in STEPS:
                facts = results[layout][step] = measure(step, layout, checkpoint, copy)
                print(row(layout, step, facts), flush=True)
    sys.path.insert(0, str(Path(__file__).parent))
    from harness import record

    record("full_size_checkpoints", {"what": (__doc__ or "").splitlines()[0], "layouts": results})


def row(layout: str, step: str, facts: Facts) -> str:
    """One line of the table."""
    own, resident = ("-" if size is None else f"{size / 2**20:.0f}" for size in (facts["anonymous"], facts["resident"]))
    measured = ("seconds", "cpu_seconds", "anonymous", "resident")
    rest = ", ".join(f"{name}={value}" for name, value in facts.items() if name not in measured)
    times = f"{facts['seconds']:8.1f} {facts['cpu_seconds']:8.1f}"
    return f"{layout:10} {step:10} {times} {own:>8} {resident:>13}  {rest}"


if __name__ == "__main__":
    main()
