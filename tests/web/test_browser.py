"""The page in a real browser, against a real server and a run of the embedded base that goes on meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from loraloom.studio.demo.plans import STYLE, copy_dataset, make_checkpoint
from work import HANGS_AFTER_S

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not tried")

NAME = "fox &lt;b&gt; &amp;"
PROMPT = "a <b>fox</b> <img src=x onerror=alert(1)>"
LONG_MS = 300_000
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@dataclass
class Studio:
    """A page that was let in, and what it did that it should not have done."""

    page: Page
    address: str
    faults: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def go(self, path: str) -> Page:
        self.page.goto(self.address + path)
        return self.page

    def step(self) -> int:
        """The step that the run's page shows."""
        text = self.page.get_by_text(re.compile(r"^\d+ of \d+$")).first.inner_text()
        return int(text.split()[0])


@contextmanager
def _started(*words: str, cwd: Path, out: int | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "loraloom", *words]
    with (
        (cwd / f"{words[0]}.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(command, cwd=cwd, env=environment, stdout=out or log, stderr=log, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def studio(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("home")
    make_checkpoint(home / "base.safetensors")
    copy_dataset(STYLE, home / "pictures")
    settings = [
        *("checkpoint=base.safetensors", "dataset.folder=pictures", "output=runs", f"name='{NAME}'", "epochs=4000"),
        *("batch_size=1", "dataset.resolution=64", "adapter.rank=2", "adapter.text_encoder=false"),
        *(f"preview.prompts=['{PROMPT}']", "preview.steps=2", "preview.at_start=true", "validation.share=0.2"),
    ]
    with (
        _started("train", *settings, cwd=home) as training,
        _started("studio", ".", "--port", "0", "--no-browser", cwd=home, out=subprocess.PIPE) as serving,
    ):
        assert serving.stdout is not None
        said = serving.stdout.readline()
        link = re.search(r"http://\S+", said)
        assert link, said
        page = browser.new_page()
        found = Studio(page, link.group().partition("/enter")[0])
        page.on("console", lambda said: found.faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: found.faults.append(str(error)))
        page.on("request", lambda sent: found.hosts.add(sent.url.partition("/api")[0].partition("/assets")[0]))
        page.on("dialog", lambda dialog: found.faults.append(f"a script ran: {dialog.message}"))
        page.set_default_timeout(LONG_MS)
        page.goto(link.group())
        yield found
        training.kill()
        training.wait(HANGS_AFTER_S)


def test_a_run_appears_by_itself_and_leads_to_its_page(studio: Studio) -> None:
    page = studio.go("/runs")
    page.get_by_role("link", name=NAME, exact=True).click()
    page.wait_for_selector(".chart canvas")
    assert page.locator("h1").inner_text() == NAME


def test_the_curve_goes_on_and_a_reload_loses_nothing(studio: Studio) -> None:
    page = studio.page
    before = studio.step()
    page.wait_for_function("before => parseInt(document.querySelector('dd').innerText) > before + 2", arg=before)
    seen = studio.step()
    page.reload()
    page.wait_for_selector(".chart canvas")
    assert studio.step() >= seen
    label = page.get_by_role("img", name=re.compile("^Loss over")).get_attribute("aria-label") or ""
    assert int(label.split()[2]) >= seen


def test_markup_in_a_prompt_is_text_and_its_picture_opens_large(studio: Studio) -> None:
    page = studio.page
    page.get_by_role("rowheader", name=PROMPT, exact=True).wait_for()
    page.get_by_role("button", name=f"{PROMPT}, before training").press("Enter")
    large = page.get_by_role("dialog")
    assert "before training" in large.inner_text() and PROMPT in large.inner_text()
    assert large.locator("img").evaluate("async picture => (await picture.decode(), picture.naturalWidth)") > 0
    page.keyboard.press("Escape")
    large.wait_for(state="detached")


def test_save_now_makes_a_file_while_the_run_goes_on(studio: Studio) -> None:
    page = studio.page
    page.get_by_role("button", name="Save now").click()
    page.get_by_role("region", name="Files").get_by_role("link").first.wait_for()


def test_a_run_pauses_and_goes_on(studio: Studio) -> None:
    page = studio.page
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("menuitem", name="It stays in memory").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause").wait_for()


def test_stopping_without_saving_asks_first(studio: Studio) -> None:
    page = studio.page
    for answer in ("Cancel", "Stop without saving"):
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("menuitem", name="Stop without saving").click()
        page.get_by_role("alertdialog").get_by_role("button", name=answer).click()
        page.get_by_role("alertdialog").wait_for(state="detached")
        if answer == "Cancel":
            page.get_by_role("button", name="Pause").wait_for()
    page.get_by_text("interrupted", exact=True).or_(page.get_by_text("stopped", exact=True)).first.wait_for()


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/none", "/health", "/nowhere"])
def test_every_page_has_a_heading_and_fits_a_phone(path: str, studio: Studio) -> None:
    page = studio.page
    page.set_viewport_size({"width": 390, "height": 844})
    studio.go(path).locator("h1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_broke_nothing_and_asked_nobody_else(studio: Studio) -> None:
    # A browser writes each refused request into its console: of the run that is not there, that is right.
    assert [fault for fault in studio.faults if "404" not in fault] == []
    assert all(host.startswith(studio.address) for host in studio.hosts)
