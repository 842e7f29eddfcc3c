"""Makes the screenshots in docs/images from the page itself, with a run of the checkpoint that comes with the package.

Usage: python tools/make_screenshots.py [HOME]

HOME: a home that has the run already, so that it is not trained again. Needs Chromium and the test extra.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from loraloom.studio.demo.plans import STYLE, copy_dataset, make_checkpoint

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LOOKS = {"studio-runs": ("/runs", "light"), "studio-run": (f"/runs/{STYLE.name}", "dark")}
WIDE = {"width": 1440, "height": 900}


def make_home(home: Path) -> None:
    """Train the style of the demo in a home, as a user would in a terminal."""
    make_checkpoint(home / "demo-sd1.safetensors")
    copy_dataset(STYLE, home / "datasets" / "drawings")
    settings = [
        *("checkpoint=demo-sd1.safetensors", "dataset.folder=datasets/drawings", "output=runs", f"name={STYLE.name}"),
        *("dataset.resolution=128", "epochs=6", "batch_size=2", "optimizer.lr=2e-3", "adapter.text_encoder=false"),
        *("adapter.rank=8", "saving.every_epochs=1", f"preview.prompts={list(STYLE.prompts[:2])}"),
        *("preview.at_start=true", "preview.cfg_scale=3", "preview.steps=8", "validation.share=0.2"),
        "objective.max_timestep=400",
    ]
    subprocess.run([sys.executable, "-m", "loraloom", "train", *settings], cwd=home, check=True)


def take(home: Path) -> None:
    """Open the studio of a home and keep what it looks like."""
    command = [sys.executable, "-u", "-m", "loraloom", "studio", str(home), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as player:
        assert server.stdout is not None
        link = re.findall(r"http://\S+", server.stdout.readline())[0]
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=WIDE)
        page.goto(link)
        for name, (path, scheme) in LOOKS.items():
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(link.partition("/enter")[0] + path)
            page.get_by_text(STYLE.name).first.wait_for()
            page.wait_for_load_state("load")
            page.wait_for_timeout(2000)
            page.screenshot(path=IMAGES / f"{name}.png")
            with Image.open(IMAGES / f"{name}.png") as picture:
                picture.convert("RGB").save(IMAGES / f"{name}.jpg", quality=88)
            (IMAGES / f"{name}.png").unlink()
        browser.close()
        server.terminate()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_home(Path(folder))
            take(Path(folder))
