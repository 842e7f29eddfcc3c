"""The checkpoint that ships with the package: written out, on first use, as an ordinary SD 1.x file.

The packaged file is compact: of the text encoder's 49,408 token vectors it holds those that were trained. The others
are random vectors that anyone can make again, and the tables of the noise schedule are computed.
"""

from __future__ import annotations

import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.errors import FileFormatError, LoraloomError
from loraloom.formats.files import make_folder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IDS", "ROWS", "main", "make_checkpoint", "token_vectors", "write_checkpoint"]

_TEXT = "cond_stage_model.transformer.text_model.embeddings."
ROWS = _TEXT + "token_embedding.rows"
"""In the packaged file: the trained token vectors, (n, width)."""
IDS = _TEXT + "token_embedding.ids"
"""In the packaged file: the token ids they belong to, (n,) int32."""
_UNTRAINED_SCALE = 0.5


def token_vectors(width: int) -> Tensor:
    """(49408, width) float32: the vectors of words the model was never shown, the same everywhere."""
    from loraloom.models.tokenizer import VOCABULARY_SIZE
    from loraloom.randomness import normal

    return _UNTRAINED_SCALE * normal((VOCABULARY_SIZE, width), "embedded base", "token vectors")


def write_checkpoint(packaged: Path, target: Path) -> None:
    """Write the full SD 1.x ``.safetensors`` file for a packaged one, atomically.

    Every tensor keeps the packaged type. Raises FileFormatError when ``packaged`` is not a packaged checkpoint.
    """
    import torch

    from loraloom.formats.tensors import open_tensors, write_tensors
    from loraloom.models.layouts import noise_schedule_layout

    with open_tensors(packaged) as file:
        if ROWS not in file or IDS not in file:
            raise FileFormatError(
                f"{packaged}: is not a packaged checkpoint, its token vectors are missing", "install the package again"
            )
        rows, ids = file[ROWS], file[IDS].long()
        vectors = token_vectors(rows.shape[1]).to(rows.dtype)
        if len(ids) != len(rows) or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(vectors)):
            raise FileFormatError(
                f"{packaged}: its token ids do not fit its token vectors", "install the package again"
            )
        vectors[ids] = rows
        tensors = noise_schedule_layout()
        tensors |= {name: file[name] for name in file if name not in (ROWS, IDS)}
        tensors[_TEXT + "token_embedding.weight"] = vectors
        tensors[_TEXT + "position_ids"] = torch.arange(77)[None]
        write_tensors(target, tensors, metadata=file.metadata)


def make_checkpoint(path: Path) -> Path:
    """Write the small checkpoint that comes with the package as an ordinary SD 1.x file; the same bytes every time."""
    make_folder(path.parent)
    with as_file(files("loraloom.studio") / "embedded_base.safetensors") as packaged:
        write_checkpoint(packaged, path)
    return path


def main() -> int:
    """The program that writes it, for processes without torch: the file's path is its argument. Returns 0 or 1."""
    try:
        make_checkpoint(Path(sys.argv[1]))
    except LoraloomError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
