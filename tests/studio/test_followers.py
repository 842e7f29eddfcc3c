from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from loraloom.errors import LoraloomError, SettingsError
from loraloom.events import Event, Notice, PreviewSaved, RunFailed, RunFinished, StepFinished
from loraloom.formats.tensors import write_tensors
from loraloom.studio.crash_report import report_text
from loraloom.studio.runs.training import run_training
from loraloom.studio.webhook import Webhook, without_credentials
from loraloom.training.settings import NotifySettings, TrainSettings
from toys import toy_tensors

Posts = list[tuple[str, bytes]]


@pytest.fixture
def server() -> Iterator[tuple[str, Posts]]:
    """A web server on this machine that keeps what is posted; ``/broken`` answers with an error."""
    posts: Posts = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.append((self.headers["Content-Type"], body))
            if "Authorization" in self.headers:
                posts.append(("Authorization", self.headers["Authorization"].encode()))
            self.send_response(500 if self.path == "/broken" else 204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/", posts
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    write_tensors(tmp_path / "toy.safetensors", toy_tensors("sd1"))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "#d02020").save(tmp_path / "pictures" / "a.png")
    overrides = [
        f"checkpoint='{tmp_path / 'toy.safetensors'}'",
        f"output='{tmp_path / 'runs'}'",
        f"dataset.folder='{tmp_path / 'pictures'}'",
        "dataset.resolution=64",
        "steps=2",
        "device=cpu",
        "preview.prompts=['a square']",
        "preview.steps=1",
        "preview.at_start=false",
    ]
    return TrainSettings.load(None, overrides)


def with_notify(settings: TrainSettings, **values: object) -> TrainSettings:
    return settings.model_copy(update={"notify": NotifySettings(**values)})  # type: ignore[arg-type]


def test_a_run_tells_its_end_and_its_previews(settings: TrainSettings, server: tuple[str, Posts]) -> None:
    url, posts = server
    run_training(with_notify(settings, url=url, on=("end", "preview")))
    records = [json.loads(body) for _, body in posts]
    assert {record["event"] for record in records} == {"PreviewSaved", "RunFinished"}
    assert {record["run"] for record in records} == {"lora"}


def test_a_run_that_fails_tells_why(settings: TrainSettings, server: tuple[str, Posts]) -> None:
    url, posts = server
    broken = settings.model_copy(update={"checkpoint": Path("nowhere.safetensors")})
    with pytest.raises(LoraloomError):
        run_training(with_notify(broken, url=url))
    assert "nowhere.safetensors" in json.loads(posts[0][1])["problem"]


def test_discord_gets_a_sentence_and_the_picture(tmp_path: Path, server: tuple[str, Posts]) -> None:
    url, posts = server
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    settings = NotifySettings(url=url, form="discord", on=("end", "failure", "preview"))
    with Webhook(settings, tmp_path / "my-run", lambda event: None) as webhook:
        webhook(PreviewSaved(str(tmp_path / "p.png"), "a cat", 10, 2))
        webhook(RunFailed(10, "the disk is full", "free some space"))
        webhook(RunFinished(20, 120.0, False, 0.05))
    parts = message_from_bytes(b"Content-Type: " + posts[0][0].encode() + b"\r\n\r\n" + posts[0][1]).get_payload()
    assert isinstance(parts, list) and len(parts) == 2
    assert "preview, epoch 2: a cat" in json.loads(parts[0].get_payload(decode=True))["content"]  # type: ignore[union-attr,arg-type]
    assert parts[1].get_payload(decode=True) == (tmp_path / "p.png").read_bytes()  # type: ignore[union-attr]
    texts = [json.loads(body)["content"] for _, body in posts[1:]]
    assert texts == [
        "**my-run**: failed after 10 steps: the disk is full. free some space",
        "**my-run**: finished after 20 steps in 2 min, loss 0.0500",
    ]


@pytest.mark.parametrize("path", ["broken", None])
def test_a_message_that_cannot_be_delivered_is_told_and_the_run_goes_on(
    settings: TrainSettings, server: tuple[str, Posts], path: str | None
) -> None:
    url = "http://127.0.0.1:9/" if path is None else server[0] + path
    events: list[Event] = []
    result = run_training(with_notify(settings, url=url, on=("end", "preview")), listener=events.append)
    assert result.lora is not None and result.lora.exists()
    told = [event for event in events if isinstance(event, Notice) and "notify.url" in event.text]
    assert len(told) == 1 and told[0].level == "warning"


def test_a_name_and_a_password_are_for_the_server_alone(
    settings: TrainSettings, tmp_path: Path, server: tuple[str, Posts]
) -> None:
    url, posts = server
    secret = url.replace("http://", "http://ada:hunter%402@")
    with Webhook(NotifySettings(url=secret), tmp_path / "run", lambda event: None) as webhook:
        webhook(RunFinished(20, 120.0, False, 0.05))
    assert posts[1] == ("Authorization", b"Basic " + b64encode(b"ada:hunter@2"))
    assert without_credentials(url) == (url, "")


@pytest.mark.parametrize("address", ["http://ada:hunter2@127.0.0.1:9/tok3n", "http://ada:hunter2@127.0.0.1:port/"])
def test_the_address_is_in_the_settings_of_the_run_and_nowhere_else(settings: TrainSettings, address: str) -> None:
    events: list[Event] = []
    result = run_training(with_notify(settings, url=address), listener=events.append)
    told = [event.text for event in events if isinstance(event, Notice) and "notify.url" in event.text]
    assert len(told) == 1
    holding = [
        path.name
        for path in result.folder.rglob("*")
        if path.is_file() and any(secret in path.read_bytes() for secret in (b"hunter2", b"tok3n"))
    ]
    assert holding == ["settings.toml"], "a run that goes on needs it"
    report = report_text(ValueError(f"cannot reach {address}"), ["train", f"notify.url={address}"])
    assert "hunter2" not in report and "tok3n" not in report


def test_nothing_is_sent_unless_asked_and_an_address_must_be_one(settings: TrainSettings) -> None:
    assert settings.notify.url == ""
    with pytest.raises(SettingsError, match="url"):
        NotifySettings.parse({"url": "ftp://example.org"})


def test_tensorboard_shows_what_was_recorded(settings: TrainSettings) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: list[Event] = []
    result = run_training(settings.model_copy(update={"tensorboard": True}), listener=events.append)
    log = EventAccumulator(str(result.folder / "tensorboard"))
    log.Reload()
    losses = [event.loss for event in events if isinstance(event, StepFinished)]
    assert [scalar.value for scalar in log.Scalars("loss/step")] == pytest.approx(losses)
    assert log.Tags()["images"] == ["a square"]
