"""A home with a run that somebody else trained, a dataset, and secrets around it; and a server for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image
from starlette.testclient import TestClient

from loraloom.studio.home import Home
from loraloom.web.app import make_app
from loraloom.web.security import Access, Sessions
from served_home import ADDRESS, SECRET, Served, finish_run, make_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    around = tmp_path_factory.mktemp("around")
    (around / "secret.txt").write_text(SECRET, encoding="utf-8")
    home = Home.open(around / "home")
    finish_run(make_run(home))
    make_run(home, "tiger", "adapter.rank=12")
    (home.datasets / "lions").mkdir()
    Image.new("RGB", (32, 24), "#d0a020").save(home.datasets / "lions" / "lion one.png")
    (home.datasets / "lions" / "lion one.txt").write_text("a lion <script>alert(1)</script>", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Served]:
    access = Access(port=7865, sessions=Sessions(home.preferences))
    app = make_app(home, access=access)
    with TestClient(app, base_url=ADDRESS, follow_redirects=False) as client:
        yield Served(home, app, access, client)


@pytest.fixture
def served(server: Served) -> Served:
    """The server, with a session of its own for each test."""
    server.client.cookies.clear()
    assert server.client.get(server.access.first_link()).status_code == 303
    return server


@pytest.fixture
def client(served: Served) -> TestClient:
    return served.client
