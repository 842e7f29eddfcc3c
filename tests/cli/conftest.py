"""The command line called in this process, and files to call it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from loraloom.cli.main import main
from loraloom.formats.tensors import write_tensors
from random_loras import random_lora
from toys import toy_tensors


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """What was printed of an error: a line that says ``error:`` and one that says ``hint:``."""
        return [line for line in self.err.splitlines() if line.startswith(("error: ", "hint: "))]


Command = Callable[..., Outcome]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """Runs ``loraloom ARGUMENTS`` as a person would, in an empty folder."""
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    caches = tmp_path_factory.mktemp("caches")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(caches))

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["loraloom", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, LoRAs and files that are neither; tests work on copies."""
    folder = tmp_path_factory.mktemp("originals")
    for family in ("sd1", "sdxl"):
        write_tensors(folder / f"{family}.safetensors", toy_tensors(family))
        write_tensors(folder / f"lora-{family}.safetensors", random_lora(family, conv=False).file_tensors())
    whole = (folder / "sd1.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "page.ckpt").write_text("<!DOCTYPE html><title>Sign in</title>", encoding="utf-8")
    vae = {name: tensor for name, tensor in toy_tensors("sd1").items() if name.startswith("first_stage_model.")}
    write_tensors(folder / "vae.safetensors", vae)
    write_tensors(folder / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)})
    wrong = random_lora("sd1", conv=False).file_tensors()
    name = next(key for key in wrong if key.endswith("attn1_to_q.lora_down.weight"))
    write_tensors(folder / "lora-shapes.safetensors", wrong | {name: torch.ones(2, 7)})
    return folder


@pytest.fixture
def files(originals: Path, tmp_path: Path) -> Path:
    """A folder with links to the originals, a dataset ``pictures``, an ``empty`` folder and a plain ``file``."""
    folder = tmp_path / "files"
    folder.mkdir()
    for original in originals.iterdir():
        (folder / original.name).hardlink_to(original)
    (folder / "pictures" / "2_red").mkdir(parents=True)
    for index in range(2):
        Image.new("RGB", (64, 64), (200, 30 * index, 30)).save(folder / "pictures" / "2_red" / f"{index}.png")
        (folder / "pictures" / "2_red" / f"{index}.txt").write_text("a red square", encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "file").write_text("x", encoding="utf-8")
    return folder
