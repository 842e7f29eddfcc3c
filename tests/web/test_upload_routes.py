"""Uploads over the API: streamed to the disk, each file with an answer, nothing left of what did not come whole."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from loraloom.studio.uploads import Intake, Limits
from served_home import Served


def picture(colour: str = "#305070") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def dataset(served: Served) -> Path:
    answer = served.client.post("/api/datasets", json={"name": "tigers"})
    assert answer.status_code == 201 and answer.json()["files"] == []
    return Path(answer.json()["folder"])


def put(client: TestClient, dataset: Path, name: str, body: bytes | Iterator[bytes]) -> dict[str, str | None]:
    answer = client.put(f"/api/datasets/{dataset.name}/files", params={"name": name}, content=body)
    assert answer.status_code == 200
    (file,) = answer.json()["files"]
    return dict(file)


def test_a_dropped_picture_is_in_the_dataset(client: TestClient, dataset: Path) -> None:
    kept = put(client, dataset, "my tigers/one.png", picture())
    assert kept == {"given": "my tigers/one.png", "kept": "my tigers/one.png", "note": "", "problem": "", "hint": ""}
    assert client.get(f"/api/datasets/{dataset.name}").json()["files"] == [
        {"path": "my tigers/one.png", "nbytes": len(picture())}
    ]
    answer = client.get(f"/api/datasets/{dataset.name}/files/my%20tigers/one.png")
    assert answer.content == picture() and answer.headers["content-type"] == "image/png"
    assert dataset.name in client.get("/api/datasets").json()["datasets"]


def test_a_picture_that_is_none_has_a_sentence_and_leaves_nothing(client: TestClient, dataset: Path) -> None:
    answer = put(client, dataset, "x.png", b"<script>alert(1)</script>")
    assert answer["kept"] is None and answer["problem"] == "is not an image"
    assert put(client, dataset, "x.png", b"")["problem"] == "is empty (zero bytes)"
    assert list(dataset.iterdir()) == []


def test_what_is_too_large_is_refused_by_what_it_says_and_by_what_comes(served: Served, dataset: Path) -> None:
    studio = served.app.state.studio
    before, studio.intake = studio.intake, Intake(Limits(file=300_000, archive=400_000))
    try:
        said = put(served.client, dataset, "large.png", b"x" * 300_001)
        came = put(served.client, dataset, "large.png", iter([b"\x89PNG"] + [b"x" * 100_000] * 30))
        assert "larger than 300.0 kB" in str(said["problem"]) and said == came
        assert put(served.client, dataset, "fits.png", picture())["kept"] == "fits.png"
    finally:
        studio.intake = before
    assert [path.name for path in dataset.iterdir()] == ["fits.png"]
    limits = served.client.get("/api/datasets").json()["limits"]
    assert limits == {"file": 2**28, "archive": 2**32, "files": 20_000}


def test_a_sender_who_hangs_up_leaves_nothing(served: Served, dataset: Path) -> None:
    """As uvicorn tells of it: the body breaks off, and nobody hears the answer."""
    cookie = "; ".join(f"{name}={value}" for name, value in served.client.cookies.items())
    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/api/datasets/{dataset.name}/files",
        "query_string": b"name=x.png",
        "headers": [(b"host", b"127.0.0.1:7865"), (b"cookie", cookie.encode()), (b"content-length", b"90000")],
    }
    messages = [
        {"type": "http.request", "body": picture()[:40], "more_body": True},
        {"type": "http.disconnect"},
    ]
    seen: list[list[str]] = []

    async def receive() -> dict[str, object]:
        seen.append([path.name[:5] for path in dataset.iterdir()])
        return messages.pop(0)

    async def send(message: dict[str, object]) -> None:
        pass

    asyncio.run(served.app(scope, receive, send))  # type: ignore[arg-type]
    assert seen == [[".tmp-"], [".tmp-"]] and list(dataset.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "CON", "x" * 300, "a\nb", "\ud83e", "<b>"])
def test_a_dataset_has_a_name_that_every_system_keeps(name: str, client: TestClient) -> None:
    body = b'{"name": "\\ud83e"}' if name == "\ud83e" else None
    answer = client.post("/api/datasets", json=None if body else {"name": name}, content=body)
    assert answer.status_code == 422 and answer.json()["problem"] and answer.json()["hint"] is not None


def test_a_dataset_that_is_not_there_takes_nothing(client: TestClient) -> None:
    answer = client.put("/api/datasets/nobody/files", params={"name": "x.png"}, content=picture())
    assert answer.status_code == 404 and "there is no dataset" in answer.json()["problem"]
    assert client.put("/api/datasets/lions/files", content=picture()).json()["field"] == "name"
