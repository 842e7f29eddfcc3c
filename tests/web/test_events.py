"""News as server-sent events, over a real socket: what comes, in which order, also to a browser that comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from loraloom.events import Notice, RunCreated, RunResumed, RunStarted
from loraloom.reading import open_file
from loraloom.studio.home import Home
from loraloom.studio.runs.control import RunLock
from loraloom.studio.runs.log import LOG_NAME
from loraloom.web.app import make_app
from loraloom.web.security import Access
from loraloom.web.serving import listening
from served_home import make_run, step, train

WINDOWS = 20


@dataclass(frozen=True)
class Message:
    kind: str
    data: Any
    place: str


@dataclass(frozen=True)
class Live:
    """A server at a port, in a thread."""

    address: str
    home: Home
    client: httpx2.Client

    @contextmanager
    def news(self, run: str, *, after: str = "", last: str = "") -> Iterator[Iterator[Message]]:
        headers = {"last-event-id": last} if last else {}
        address = f"{self.address}/api/runs/{run}/events"
        with self.client.stream("GET", address, params={"after": after}, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            yield _messages(answer.iter_lines())


def _messages(lines: Iterator[str]) -> Iterator[Message]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Message(fields["event"], json.loads(fields["data"]), fields.get("id", ""))
            fields = {}


def of_kind(messages: Iterator[Message], kind: str, count: int) -> list[Message]:
    """The next messages of a kind."""
    found: list[Message] = []
    while len(found) < count:
        found += [message for message in [next(messages)] if message.kind == kind]
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = Home.open(tmp_path_factory.mktemp("home"))
    with listening("127.0.0.1", 0) as found:
        access = Access(port=found.getsockname()[1])
        app = make_app(home, access=access)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
        thread.start()
        limits = httpx2.Limits(max_connections=3 * WINDOWS)
        with httpx2.Client(limits=limits, follow_redirects=False, trust_env=False) as client:
            assert client.get(access.first_link()).status_code == 303
            yield Live(access.address, home, client)
            app.state.studio.closing.set()
            server.should_exit = True
        thread.join()


def test_news_begin_where_they_are_asked_for_and_come_as_they_happen(live: Live) -> None:
    run = make_run(live.home, "lion")
    train(run, step(1), step(2))
    with live.news("lion") as news:
        first, one, two, status = (next(news) for _ in range(4))
        assert [first.data["event"], one.data["step"], two.data["step"]] == ["RunCreated", 1, 2]
        assert (status.kind, status.data["name"], status.data["step"], status.place) == ("status", "lion", 2, "")
        train(run, Notice("<b>\u732b</b>"), step(3))
        notice, three = of_kind(news, "happened", 2)
        assert notice.data["text"] == "<b>\u732b</b>" and three.data["loss"] == pytest.approx(1 / 3)
        assert three.place.startswith(f"{(run / LOG_NAME).stat().st_size}-")
    with live.news("lion", last=two.place) as news:
        assert of_kind(news, "happened", 2) == [notice, three], "a browser that comes back gets the rest, and no more"
    offset = live.client.get(f"{live.address}/api/runs/lion/curves").json()["offset"]
    with live.news("lion", after=str(offset)) as news:
        assert next(news).kind == "status"
        train(run, RunResumed(1), step(2))
        resumed, again = of_kind(news, "happened", 2)
        assert (resumed.data["back_to"], again.data["back_to"]) == (1, None)
    with live.news("lion", after="0", last=three.place) as news:
        assert next(news).data == resumed.data, "the browser's own place goes before that of the page"


def test_numbers_that_json_does_not_know_are_left_out(live: Live) -> None:
    train(make_run(live.home, "nan"), step(1, float("nan")), Notice("\udcff"))
    with live.news("nan") as news:
        _, first, notice = of_kind(news, "happened", 3)
        assert first.data["loss"] is None and notice.data["text"] == "\\udcff"


def test_a_run_whose_process_dies_is_told_of(live: Live) -> None:
    run = make_run(live.home, "puma")
    with live.news("puma") as news:
        with RunLock(run):
            states = []
            while "preparing" not in states:
                states += [message.data["state"] for message in of_kind(news, "status", 1)]
            train(run, RunStarted(str(run), 30, 10, 3, 4, 100), step(1))
            assert of_kind(news, "status", 1)[0].data["state"] == "running"
        assert of_kind(news, "status", 1)[0].data["state"] == "interrupted"


def test_a_log_that_was_replaced_says_so(live: Live) -> None:
    run = make_run(live.home, "lynx")
    train(run, *map(step, range(1, 30)))
    with live.news("lynx") as news:
        last = of_kind(news, "happened", 30)[-1]
        (run / LOG_NAME).unlink()
        train(run, RunCreated("another"), Notice("new"))
        replaced = of_kind(news, "replaced", 1)[0]
        assert "replaced" in replaced.data["problem"] and replaced.place == "0"
        assert [message.data["event"] for message in of_kind(news, "happened", 2)] == ["RunCreated", "Notice"]
    train(run, *(step(number, 0.5) for number in range(1, 40)))
    for place in (last.place, "99999999", "x"):
        with live.news("lynx", last=place) as news:
            assert next(news).kind == "replaced"
            assert len(of_kind(news, "happened", 41)) == 41


def test_a_run_that_is_removed_ends_its_news(live: Live) -> None:
    run = make_run(live.home, "gone")
    with live.news("gone") as news:
        of_kind(news, "status", 1)
        for path in sorted(run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.rmdir()
        kinds = [message.kind for message in news]
    assert kinds[-1] == "failed"
    missing = live.client.get(f"{live.address}/api/runs/gone/events")
    assert missing.status_code == 404 and missing.json()["problem"] == "there is no run 'gone'"


def test_news_of_the_queue_are_what_has_changed(live: Live) -> None:
    def add(epochs: int) -> int:
        wish = {"kind": "demo", "settings": {"epochs": epochs}}
        return int(live.client.post(f"{live.address}/api/jobs", json=wish).json()["id"])

    one = add(2)
    with live.client.stream("GET", f"{live.address}/api/jobs/events", timeout=60) as answer:
        news = _messages(answer.iter_lines())
        assert [job["id"] for job in next(news).data["changed"]] == [one]
        two = add(3)
        message = next(news)
        assert (message.kind, [job["id"] for job in message.data["changed"]]) == ("jobs", [two])
        live.client.post(f"{live.address}/api/jobs/{one}/hold")
        held = next(news).data
        assert [(job["id"], job["held"]) for job in held["changed"]] == [(one, True)] and held["gone"] == []
        live.client.post(f"{live.address}/api/jobs/stop-after", json={"stop": True})
        assert next(news).data == {"changed": [], "gone": [], "stop_after_this": True}
        for job in (one, two):
            live.client.post(f"{live.address}/api/jobs/{job}/cancel", json={})
            live.client.delete(f"{live.address}/api/jobs/{job}")
        gone: set[int] = set()
        while gone != {one, two}:
            gone |= set(next(news).data["gone"])


def test_twenty_windows_read_the_log_as_often_as_one(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(live.home, "busy")
    train(run, *map(step, range(1, 300)))
    reads: list[Path] = []

    def counted(path: Path) -> Any:
        if path.parent == run:
            reads.append(path)
        return open_file(path)

    monkeypatch.setattr("loraloom.studio.runs.log.open_file", counted)
    came: list[int] = []
    ready, wrote = threading.Barrier(WINDOWS + 1), threading.Event()

    def window() -> None:
        offset = str((run / LOG_NAME).stat().st_size)
        with live.news("busy", after=offset) as news:
            next(news)
            ready.wait(60)
            wrote.wait(60)
            came.append(of_kind(news, "happened", 5)[-1].data["step"])

    threads = [threading.Thread(target=window) for _ in range(WINDOWS)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    reads.clear()
    for number in range(300, 305):
        train(run, step(number))
    wrote.set()
    for thread in threads:
        thread.join(60)
    assert came == [304] * WINDOWS
    assert len(reads) < WINDOWS, "one look serves all windows"
