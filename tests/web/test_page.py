"""The page's files: with the right headers where they are, a plain sentence where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

PAGES = ("/", "/runs", "/runs/lion", "/datasets/cats and dogs", "/train/")


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html><title>the page</title>", encoding="utf-8")
    (page / "assets" / "index-5f3a.js").write_text("export {}", encoding="utf-8")
    (page / "icon.svg").write_text("<svg/>", encoding="utf-8")
    (page / "notes.py").write_text("x", encoding="utf-8")
    (tmp_path / "secret.js").write_text("secret", encoding="utf-8")
    monkeypatch.setattr("loraloom.web.routers.page.PAGE", page)
    return page


@pytest.mark.parametrize("path", PAGES)
def test_every_address_of_the_page_is_the_document(path: str, built: Path, client: TestClient) -> None:
    answer = client.get(path)
    assert "the page" in answer.text and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert (
        answer.headers["cache-control"] == "no-cache"
        and "script-src 'self'" in answer.headers["content-security-policy"]
    )


def test_files_that_never_change_are_kept(built: Path, client: TestClient) -> None:
    answer = client.get("/assets/index-5f3a.js")
    assert (
        answer.headers["content-type"].startswith("text/javascript") and "immutable" in answer.headers["cache-control"]
    )
    assert client.get("/icon.svg").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/assets/none.js", "/assets/%2e%2e", "/notes.py.txt", "/none.png", "/api/none", "/api/"]
)
def test_what_is_not_there_is_said(path: str, built: Path, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["problem"] and "secret" not in answer.text


def test_dots_lead_to_the_document_at_most(built: Path, client: TestClient) -> None:
    for path in (
        "/assets/..%2f..%2fsecret.js",
        "/..%2fsecret.js",
        "/%2e%2e/%2e%2e/secret.js",
        "/assets/..%5c..%5csecret.js",
    ):
        assert "secret" not in client.get(path).text


def test_without_its_build_the_server_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    monkeypatch.setattr("loraloom.web.routers.page.PAGE", tmp_path / "none")
    answer = client.get("/")
    assert answer.status_code == 404 and "npm run build" in answer.text and "<script" not in answer.text
    assert client.get("/assets/index.js").status_code == 404
