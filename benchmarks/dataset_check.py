"""``loraloom dataset check`` on 2,000 pictures with captions.

    python benchmarks/dataset_check.py [--images 2000] [--repeats 3]

JPEG pictures of 768 x 512, 512 x 512 and 640 x 960 pixels, made in a temporary folder (about 150 MB). The command runs
in a process of its own; every picture is decoded whole, which is how damage is found.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import interleaved, record, summary
from PIL import Image

SIZES = ((768, 512), (512, 512), (640, 960))
WORDS = ("a", "cat", "house", "tree", "under", "beside", "red", "old", "small", "photograph", "drawing", "of", "rain")


def make_dataset(folder: Path, count: int) -> None:
    """Four concepts of noisy pictures, each with a caption of 5 to 60 words."""
    chance = random.Random(0)
    for index in range(count):
        concept = folder / f"{1 + index % 4}_concept{index % 4}"
        concept.mkdir(exist_ok=True)
        coarse = Image.frombytes("RGB", (48, 48), chance.randbytes(48 * 48 * 3))
        picture = coarse.resize(SIZES[index % len(SIZES)], Image.Resampling.BICUBIC)
        picture.save(concept / f"{index:05d}.jpg", quality=90)
        words = " ".join(chance.choices(WORDS, k=chance.randint(5, 60)))
        (concept / f"{index:05d}.txt").write_text(words, encoding="utf-8")


def check(folder: Path) -> None:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "loraloom", "dataset", "check", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def decode(folder: Path) -> None:
    """For comparison: decode every picture and do nothing with it, in one thread."""
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as picture:
            picture.load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="loraloom-") as name:
        folder = Path(name)
        make_dataset(folder, options.images)
        ways = {"decoding alone, one thread": partial(decode, folder), "loraloom dataset check": partial(check, folder)}
        seconds = interleaved(ways, repeats=options.repeats)
    figures = summary(seconds, against="decoding alone, one thread")
    record("dataset_check", {"what": __doc__.splitlines()[0], "images": options.images, "ways": figures})


if __name__ == "__main__":
    main()
