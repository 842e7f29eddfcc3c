"""A message to an address of the person's choice when a run ends, fails or has painted a preview.

Nothing is sent unless ``notify.url`` is set. Messages go out on a thread of their own, so that a slow or dead server
never holds up training; for one that cannot be delivered there is one warning.
"""

from __future__ import annotations

import json
import queue
import threading
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import loraloom
from loraloom.events import Event, Listener, Notice, PreviewSaved, RunFailed, RunFinished, to_record
from loraloom.studio.crash_report import without_secrets
from loraloom.training.settings import NotifySettings

__all__ = ["Webhook", "discord_message", "json_message", "without_credentials"]

TIMEOUT_S = 15.0
_CLOSING_S = 30.0


@dataclass(frozen=True)
class Message:
    """The body of an HTTP POST."""

    body: bytes
    content_type: str


class Webhook:
    """The listener that sends. Use it as a context manager: it waits (not for ever) until everything is out."""

    def __init__(self, settings: NotifySettings, run: Path, listener: Listener) -> None:
        self._settings = settings
        self._run = run
        self._listener = listener
        self._problem = ""
        self._told = False
        self._waiting: queue.Queue[Message | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send_all, name="loraloom webhook", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join(_CLOSING_S)
        self._tell()

    def __call__(self, event: Event) -> None:
        self._tell()
        if _kind(event) in self._settings.on:
            form = self._settings.form
            if form == "auto":
                form = "discord" if _is_discord(self._settings.url) else "json"
            make = discord_message if form == "discord" else json_message
            self._waiting.put(make(event, self._run))

    def _tell(self) -> None:
        if self._problem and not self._told:
            self._told = True
            self._listener(Notice(f"notify.url: {self._problem}; the run goes on", "warning"))

    def _send_all(self) -> None:
        while (message := self._waiting.get()) is not None:
            headers = {"Content-Type": message.content_type, "User-Agent": f"loraloom/{loraloom.__version__}"}
            try:
                url, credentials = without_credentials(self._settings.url)
                request = urllib.request.Request(url, message.body, headers)
                if credentials:
                    request.add_unredirected_header("Authorization", credentials)  # they are for that host alone
                with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                    pass
            except urllib.error.HTTPError as error:
                self._problem = f"the server answered {error.code} {error.reason}"
            except (OSError, ValueError, HTTPException) as error:  # URLError and timeouts are OSErrors
                # What the libraries say may hold a part of the address, and this text goes into the run's log.
                reason = without_secrets(str(getattr(error, "reason", error))) or type(error).__name__
                self._problem = f"a message could not be delivered ({reason})"


def without_credentials(url: str) -> tuple[str, str]:
    """An address without ``user:password@``, and what these become in the header ``Authorization`` (RFC 7617).

    Empty where there are none.
    """
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, ""
    told, _, host = parts.netloc.rpartition("@")
    user, _, password = told.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return parts._replace(netloc=host).geturl(), f"Basic {b64encode(pair).decode('ascii')}"


def json_message(event: Event, run: Path) -> Message:
    """The event as one JSON object, as in ``events.jsonl``, with the run's name and folder."""
    record = {"run": run.name, "folder": str(run), **to_record(event)}
    return Message(json.dumps(record).encode(), "application/json")


def discord_message(event: Event, run: Path) -> Message:
    """What Discord's webhooks take: a line of text, and for a preview the picture itself."""
    text = {"content": f"**{run.name}**: {_sentence(event)}", "allowed_mentions": {"parse": []}}
    if not isinstance(event, PreviewSaved):
        return Message(json.dumps(text).encode(), "application/json")
    try:
        picture = Path(event.path).read_bytes()
    except OSError:
        return Message(json.dumps(text).encode(), "application/json")
    return _multipart(text, Path(event.path).name, picture)


def _multipart(text: Mapping[str, Any], name: str, picture: bytes) -> Message:
    """multipart/form-data (RFC 7578) of ``payload_json`` and one file."""
    border = uuid.uuid4().hex
    name = name.replace('"', "").replace("\r", "").replace("\n", "")
    head = (
        f'--{border}\r\nContent-Disposition: form-data; name="payload_json"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(text)}\r\n"
        f'--{border}\r\nContent-Disposition: form-data; name="files[0]"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    return Message(
        head.encode() + picture + f"\r\n--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"
    )


def _kind(event: Event) -> str:
    match event:
        case RunFinished():
            return "end"
        case RunFailed():
            return "failure"
        case PreviewSaved():
            return "preview"
        case _:
            return ""


def _sentence(event: Event) -> str:
    match event:
        case RunFinished(stopped=stopped):
            how = "stopped" if stopped else "finished"
            return f"{how} after {event.step} steps in {event.seconds / 60:.0f} min, loss {event.average_loss:.4f}"
        case RunFailed():
            return f"failed after {event.step} steps: {event.problem}. {event.hint}".strip()
        case PreviewSaved():
            return f"preview, epoch {event.epoch}: {event.prompt}"
        case _:
            return type(event).__name__


def _is_discord(url: str) -> bool:
    parts = urlsplit(url)
    return (parts.hostname or "").endswith(("discord.com", "discordapp.com")) and "/webhooks/" in parts.path
