"""Folders of other programs, recognised by what lies in them, so that their models are used where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PROGRAMS", "Layout", "recognise_layout"]


@dataclass(frozen=True)
class Layout:
    """Where one program keeps what; a kind of file may lie in several folders, or in none. All of them exist."""

    kind: str
    """automatic1111, forge, comfyui, kohya."""
    folder: Path
    """The program's own folder, which may lie in the one that was looked at."""
    checkpoints: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()
    vaes: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    datasets: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Program:
    """How one program's folder is known (all paths of one line of ``marks`` are there), and what lies where in it."""

    title: str
    marks: tuple[tuple[str, ...], ...]
    places: Mapping[str, tuple[str, ...]]


_WEB_UI: Mapping[str, tuple[str, ...]] = {
    "checkpoints": ("models/Stable-diffusion",),
    "loras": ("models/Lora", "models/LyCORIS"),
    "embeddings": ("embeddings",),
    "vaes": ("models/VAE",),
    "outputs": ("outputs", "output"),
}
PROGRAMS: Mapping[str, _Program] = {
    # Forge has all that AUTOMATIC1111 has, and more: it is asked for first.
    "forge": _Program(
        "Forge", (("models/Stable-diffusion", "modules_forge"), ("models/Stable-diffusion", "backend")), _WEB_UI
    ),
    "automatic1111": _Program("AUTOMATIC1111", (("models/Stable-diffusion",),), _WEB_UI),
    "comfyui": _Program(
        "ComfyUI",
        (
            ("models/checkpoints", "models/loras"),
            ("models/checkpoints", "custom_nodes"),
            ("models/checkpoints", "comfy"),
        ),
        {
            "checkpoints": ("models/checkpoints",),
            "loras": ("models/loras",),
            "embeddings": ("models/embeddings",),
            "vaes": ("models/vae",),
            "outputs": ("output",),
        },
    ),
    "kohya": _Program(
        "kohya",
        (
            ("kohya_gui.py",),
            ("sd-scripts/train_network.py",),
            ("train_network.py", "library/train_util.py"),
            ("img", "model", "log"),  # what its GUI prepares for one training
        ),
        {
            "checkpoints": ("models",),
            "loras": ("outputs", "output", "model"),
            "outputs": ("outputs/sample", "output/sample", "model/sample"),
            "datasets": ("img", "dataset", "train", "reg"),
        },
    ),
}
"""Programs by their kind, in the order in which a folder is compared with them."""
_INSIDE = ("webui", "ComfyUI", "stable-diffusion-webui", "stable-diffusion-webui-forge", "kohya_ss")
"""Folders in which packages for unpacking and running keep the program itself."""


def recognise_layout(folder: Path) -> Layout | None:
    """Which program's folder this is, and where it keeps its files; None for any other.

    Names are compared in any case. A folder that holds the program's own one (as packages for Windows do) is that
    program's too.
    """
    for place in (folder, *(inside for name in _INSIDE if (inside := _found(folder, name)) is not None)):
        for kind, program in PROGRAMS.items():
            if any(all(_found(place, mark) for mark in marks) for marks in program.marks):
                return _layout(kind, place, program)
    return None


def _layout(kind: str, folder: Path, program: _Program) -> Layout:
    def there(what: str) -> tuple[Path, ...]:
        return _folders(folder, program.places.get(what, ()))

    return Layout(
        kind,
        folder,
        checkpoints=there("checkpoints"),
        loras=there("loras"),
        embeddings=there("embeddings"),
        vaes=there("vaes"),
        outputs=there("outputs"),
        datasets=there("datasets"),
    )


def _folders(folder: Path, places: Sequence[str]) -> tuple[Path, ...]:
    paths = (_found(folder, place, Path.is_dir) for place in places)
    return tuple(path for path in paths if path is not None)


def _found(folder: Path, relative: str, is_right: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The path below ``folder`` with these names in any case, as it is written there; None where there is none."""
    path = folder
    for name in relative.split("/"):
        exact = path / name
        if not _asked(exact, Path.exists):
            try:
                exact = next(entry for entry in path.iterdir() if entry.name.lower() == name.lower())
            except (OSError, StopIteration):
                return None
        path = exact
    return path if _asked(path, is_right) else None


def _asked(path: Path, question: Callable[[Path], bool]) -> bool:
    try:
        return question(path)
    except OSError:  # of another user, or a name that the system cannot hold
        return False
