"""Who is let in, sentence by sentence of the rules: over all routes that there are, so that a new one is covered."""

from __future__ import annotations

import ast
import os
import time
import urllib.parse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

import loraloom
from loraloom.errors import SettingsError
from loraloom.studio.home import Home
from loraloom.web.app import make_app
from loraloom.web.security import OPEN_PATHS, SMALL_BODY, Access, Sessions, is_loopback
from served_home import ADDRESS, SECRET, Served

PASSWORD = "seven wild geese"


# -- the address --------------------------------------------------------------------------------------------------


def test_only_this_machine_reaches_it_unless_told_otherwise() -> None:
    assert Access().host == "127.0.0.1"
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "studio.example", "localhost.example", "")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "studio.example"])
def test_an_address_for_other_machines_needs_a_password(host: str) -> None:
    with pytest.raises(SettingsError, match="needs a password"):
        Access(host)
    with pytest.raises(SettingsError, match="5 characters, and needs 8"):
        Access(host, password="geese")
    assert Access(host, password=PASSWORD).serves("192.168.1.7:7865")


# -- names and origins --------------------------------------------------------------------------------------------

FOREIGN_HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:7865",
    "192.168.1.7:7865",
    "[::2]:7865",
    "0.0.0.0:7865",
    "",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_no_route_answers_under_a_foreign_name(host: str, served: Served) -> None:
    for method, path in served.routes():
        answer = served.client.request(method, path, headers={"host": host})
        assert answer.status_code == 403 and SECRET not in answer.text, (method, path)
        if method != "HEAD":
            assert set(answer.json()) == {"problem", "hint", "actions", "field"}


@pytest.mark.parametrize("host", ["127.0.0.1:7865", "localhost:7865", "LOCALHOST:8000", "[::1]:7865", "localhost"])
def test_it_answers_under_its_names_whatever_port_leads_to_it(host: str, served: Served) -> None:
    assert served.client.get("/api/health", headers={"host": host}).status_code == 200


def test_more_names_can_be_given() -> None:
    access = Access(names=("Studio.Example",))
    assert access.serves("studio.example:443") and not access.serves("other.example")
    assert not access.serves("192.168.1.7"), "numbers are for servers that other machines may reach"


FOREIGN_SENDERS: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "http://127.0.0.1:8000"},
    {"origin": "http://localhost:7865"},
    {"origin": "null"},
    {"origin": "file://"},
    {"origin": "http://127.0.0.1:7865.evil.example"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("headers", FOREIGN_SENDERS, ids=str)
def test_no_route_answers_a_page_of_another_origin(headers: dict[str, str], served: Served) -> None:
    for method, path in served.routes():
        answer = served.client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)


def test_the_page_of_the_server_is_answered(served: Served) -> None:
    for headers in ({"origin": ADDRESS}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}):
        assert served.client.get("/api/health", headers=headers).status_code == 200
    name = {"host": "localhost:8000", "origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}
    assert served.client.post("/api/session/link", headers=name).json()["link"].startswith("http://localhost:8000/")


def test_a_link_on_another_site_shows_the_page_but_reads_nothing(served: Served) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    link["accept"] = "text/html"
    # A browser keeps the strict cookie back: a page of ours asks once more, and that time it is sent.
    answer = served.stranger().get("/runs", headers=link)
    assert answer.status_code == 200 and '<meta http-equiv="refresh" content="0">' in answer.text
    assert served.client.get("/api/runs", headers=link).status_code == 403
    framed = {**link, "sec-fetch-dest": "iframe"}
    assert served.client.get("/runs", headers=framed).status_code == 403


def test_no_other_origin_is_named_in_an_answer(served: Served) -> None:
    for method, path in served.routes():
        for origin in (ADDRESS, "https://evil.example"):
            headers = {"origin": origin, "access-control-request-method": method}
            for verb in ("OPTIONS", *([] if path.endswith("/events") else [method])):
                answer = served.client.request(verb, path, headers=headers)
                assert not [name for name in answer.headers if name.startswith("access-control")], (verb, path)


# -- sessions -----------------------------------------------------------------------------------------------------


def test_without_a_session_no_route_answers(served: Served) -> None:
    stranger = served.stranger()
    for method, path in served.routes():
        if path in OPEN_PATHS:
            continue
        answer = stranger.request(method, path)
        assert answer.status_code == 401 and "lion" not in answer.text, (method, path)
        wanted = stranger.request(method, path, headers={"accept": "text/html"})
        if method in ("GET", "HEAD"):
            assert (wanted.status_code, wanted.headers["location"]) == (303, "/login"), (method, path)
        else:
            assert wanted.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": "loraloom-session-7865=x"},
        {"cookie": "loraloom-session-7865="},
        {"cookie": "loraloom-session-7865"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer x"},
        {"authorization": "Basic eDp4"},
        {"authorization": "Bearer \u00e4\u00f6"},
    ],
    ids=str,
)
def test_what_looks_like_a_session_is_none(headers: dict[str, str], served: Served) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    assert served.stranger().get("/api/runs", headers=raw).status_code == 401


def test_the_link_works_once(served: Served) -> None:
    link = served.access.first_link()
    stranger = served.stranger()
    assert stranger.head(link).status_code in (303, 405)
    ahead = stranger.get(link, headers={"sec-purpose": "prefetch;prerender"})
    assert ahead.status_code == 403 and "set-cookie" not in ahead.headers
    answer = stranger.get(link)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("loraloom-session-7865=") and "; httponly" in cookie and "; samesite=strict" in cookie
    assert "domain" not in cookie and "; path=/" in cookie
    assert stranger.get("/api/health").status_code == 200
    assert stranger.get(link).status_code == 303, "whoever is in already is led to the page"
    second = served.stranger().get(link)
    assert second.status_code == 403 and "used already" in second.text and "set-cookie" not in second.headers
    assert served.stranger().get("/enter").status_code == 403


def test_a_browser_can_let_in_another_one_and_leave(served: Served) -> None:
    one, other = served.stranger(), served.stranger()
    one.get(served.access.first_link())
    link = one.post("/api/session/link").json()["link"]
    assert link.startswith(f"{ADDRESS}/enter?key=")
    assert other.get(link).status_code == 303 and other.get("/api/runs").status_code == 200
    token = other.cookies["loraloom-session-7865"]
    assert other.post("/api/session/end").status_code == 204
    assert other.get("/api/runs").status_code == 401
    again = served.stranger(cookie=f"loraloom-session-7865={token}")
    assert again.get("/api/runs").status_code == 401, "its token is worth nothing any more"
    assert one.get("/api/runs").status_code == 200


def test_sessions_outlast_the_server_and_their_tokens_are_nowhere(served: Served) -> None:
    token = served.access.sessions.begin()
    assert Sessions(served.home.preferences).is_open(token)
    link = Sessions(served.home.preferences).link(ADDRESS)
    assert served.stranger().get(link).status_code == 303, "another process has made the link"
    key = link.partition("key=")[2]
    written = b"".join(path.read_bytes() for path in served.home.path.glob("studio.db*"))
    assert token.encode() not in written and key.encode() not in written


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {"sessions": "damaged", "links": {"a": "b"}}
    sessions = Sessions(kept)
    token, key = sessions.begin(), sessions.link(ADDRESS, seconds=300).partition("key=")[2]
    now = time.time()
    monkeypatch.setattr("loraloom.web.security.time", SimpleNamespace(time=lambda: now + 301))
    assert not sessions.use_key(key) and sessions.is_open(token)
    monkeypatch.setattr("loraloom.web.security.time", SimpleNamespace(time=lambda: now + 31 * 24 * 3600))
    assert not sessions.is_open(token)
    for _ in range(130):
        last = sessions.begin()
    assert len(kept["sessions"]) == 100 and sessions.is_open(last)


# -- passwords ----------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(home: Home) -> TestClient:
    access = Access("0.0.0.0", 7865, PASSWORD)
    return TestClient(make_app(home, access=access), base_url="http://192.168.1.7:7865", follow_redirects=False)


def test_a_password_lets_in(guarded: TestClient) -> None:
    page = guarded.get("/", headers={"accept": "text/html"})
    assert page.headers["location"] == "/login"
    assert 'type="password"' in guarded.get("/login").text and "script" not in guarded.get("/login").text
    wrong = guarded.post("/login", data={"password": "eight wild geese"})
    assert wrong.status_code == 403 and "not the password" in wrong.text and "geese" not in wrong.text
    right = guarded.post("/login", data={"password": PASSWORD})
    assert right.status_code == 303 and "httponly" in right.headers["set-cookie"].lower()
    assert guarded.get("/api/runs").status_code == 200


def test_programs_give_the_password_in_a_header(guarded: TestClient) -> None:
    assert guarded.get("/api/runs", headers={"authorization": f"Bearer {PASSWORD}"}).status_code == 200
    assert guarded.get("/api/runs", headers={"authorization": f"Bearer {PASSWORD}s"}).status_code == 401


def test_passwords_cannot_be_tried_one_after_another(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        assert guarded.post("/login", data={"password": "x"}).status_code == 403
    refused = guarded.post("/login", data={"password": PASSWORD})
    assert refused.status_code == 429 and "Wait a minute" in refused.text
    assert guarded.get("/api/runs", headers={"authorization": f"Bearer {PASSWORD}"}).status_code == 401
    now = time.monotonic()
    monkeypatch.setattr("loraloom.web.security.time", SimpleNamespace(monotonic=lambda: now + 61, time=time.time))
    assert guarded.post("/login", data={"password": PASSWORD}).status_code == 303


def test_without_a_password_there_is_none_to_guess(served: Served) -> None:
    assert served.stranger().post("/login", data={"password": ""}).status_code == 403
    assert served.stranger().get("/api/runs", headers={"authorization": "Bearer "}).status_code == 401


# -- headers ------------------------------------------------------------------------------------------------------


def test_every_answer_says_what_a_browser_may_do_with_it(served: Served) -> None:
    for method, path in served.routes():
        if path.endswith("/events"):
            continue
        headers = served.client.request(method, path).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] in ("'self'", "'none'"), path
        assert "unsafe" not in policy.get("script-src", policy["default-src"]), path
        assert "http" not in headers["content-security-policy"] and "*" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "cache-control" in headers and headers["referrer-policy"] == "same-origin"


def test_plain_pages_show_text_as_text(served: Served) -> None:
    from loraloom.web.plain_page import plain_page

    page = bytes(plain_page("<b>", ["<script>x</script>"], problem='"><img src=x>').body).decode()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert served.client.get("/login").headers["content-type"].startswith("text/html")


# -- paths --------------------------------------------------------------------------------------------------------

TRICKS = [
    "../../../secret.txt",
    "..%2f..%2f..%2fsecret.txt",
    "%2e%2e/%2e%2e/%2e%2e/secret.txt",
    "..%252f..%252f..%252fsecret.txt",
    "....//....//....//secret.txt",
    "..\\..\\..\\secret.txt",
    "..%5c..%5c..%5csecret.txt",
    "previews/../../../../secret.txt",
    "previews/../../../studio.db",
    "./../../../secret.txt",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "///etc/passwd",
    "file:///etc/passwd",
    "C:/Windows/win.ini",
    "C:%5cWindows%5cwin.ini",
    "%5c%5cserver%5cshare%5csecret.txt",
    "//server/share/secret.txt",
    "~/secret.txt",
    "$HOME/secret.txt",
    "secret.txt%00.png",
    "%00",
    "previews/link-out/secret.txt",
    "link-to-secret.txt",
    "previews",
    ".",
    "..",
    "",
    ".lock",
    "previews/.hidden.png",
    "settings.toml::$DATA",
    "CON",
    "a" * 300,
    "a/" * 200 + "x",
    "%ff%fe",
    "\u202ekcab",
    "|ls",
    "pipe.png",
]


@pytest.fixture
def tricky(served: Served) -> Served:
    """With links that lead out, hidden files and a pipe in the folders that can be asked for."""
    for folder in (served.home.runs / "lion", served.home.datasets / "lions"):
        (folder / "previews").mkdir(exist_ok=True)
        (folder / "previews" / ".hidden.png").write_text(SECRET, encoding="utf-8")
        (folder / ".lock").write_text(SECRET, encoding="utf-8")
        if os.name != "nt" and not (folder / "link-to-secret.txt").is_symlink():
            (folder / "link-to-secret.txt").symlink_to(served.home.path.parent / "secret.txt")
            (folder / "previews" / "link-out").symlink_to(served.home.path.parent)
            os.mkfifo(folder / "pipe.png")
    return served


def places(served: Served) -> list[tuple[str, str]]:
    """Every parameter that names a file or a folder, as an address with ``{}`` in its place."""
    found = []
    for path, methods in served.app.openapi()["paths"].items():
        for method, route in methods.items():
            for parameter in route.get("parameters", ()):
                if parameter["in"] == "path":
                    others = path.replace("{" + parameter["name"] + "}", "{}")
                    for name, value in (("{run}", "lion"), ("{dataset}", "lions"), ("{path}", "x.png"), ("{job}", "1")):
                        others = others.replace(name, value)
                    found.append((method.upper(), others))
                elif parameter["name"] in ("name", "other"):
                    filled = path.replace("{dataset}", "lions").replace("{run}", "lion")
                    found.append((method.upper(), f"{filled}?{parameter['name']}={{}}"))
    found += [("GET", "/assets/{}"), ("GET", "/{}")]
    assert len(found) > 15
    return found


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: ascii(trick)[:40])
def test_no_path_leads_out_of_the_home(trick: str, tricky: Served) -> None:
    for method, place in places(tricky):
        if place.endswith("/events") and trick in ("", "."):
            continue
        for written in {trick, urllib.parse.quote(trick, safe="")}:
            answer = tricky.client.request(method, ADDRESS + place.format(written))
            assert SECRET not in answer.text and "root:" not in answer.text, (method, place)
            assert answer.status_code < 500 and answer.status_code != 401, (method, place, answer.text)
            if place == "/api/runs/lion/files/{}" and trick.strip("."):
                assert answer.status_code in (404, 405, 422), (place, answer.status_code)


def test_uploads_land_in_the_dataset_whatever_they_are_called(tricky: Served) -> None:
    before = {path for path in tricky.home.path.parent.rglob("*") if "lions" not in path.parts}
    for trick in TRICKS:
        picture = (tricky.home.datasets / "lions" / "lion one.png").read_bytes() + trick.encode()
        given = urllib.parse.unquote(trick)
        answer = tricky.client.put("/api/datasets/lions/files", params={"name": given}, content=picture)
        (file,) = answer.json()["files"]
        assert file["kept"] or file["problem"], trick
        if file["kept"]:
            kept = (tricky.home.datasets / "lions" / file["kept"]).resolve()
            assert (tricky.home.datasets / "lions").resolve() in kept.parents
    after = {path for path in tricky.home.path.parent.rglob("*") if "lions" not in path.parts}
    assert {path.name for path in after - before} <= {"studio.db-wal", "studio.db-shm"}
    assert (tricky.home.path.parent / "secret.txt").read_text(encoding="utf-8") == SECRET


# -- bodies, and the world outside -------------------------------------------------------------------------------


BODILESS = ("/end", "/link", "/resume", "/save", "/preview", "/hold", "/release", "/retry", "/1")
"""Routes that read no body."""


def test_no_route_takes_a_body_without_bound(served: Served) -> None:
    for method, path in served.routes():
        if method in ("GET", "HEAD", "PUT") or path in OPEN_PATHS - {"/login"}:
            continue
        stated = served.client.request(method, path, headers={"content-length": str(SMALL_BODY + 1)}, content=b"")
        assert stated.status_code == 413 and stated.json()["problem"], (method, path)

        def pieces() -> Any:
            for _ in range(SMALL_BODY // 2**20 + 1):
                yield b" " * 2**20

        unstated = served.client.request(method, path, content=pieces(), headers={"content-type": "application/json"})
        assert unstated.status_code < 500, (method, path, unstated.status_code)
        assert path.endswith(BODILESS) or unstated.status_code == 413, (method, path)


@pytest.mark.parametrize("length", ["x", "-1", "9" * 40, "5368709121"])
def test_a_length_that_is_none_or_too_much_is_refused(length: str, client: TestClient) -> None:
    answer = client.put("/api/datasets/lions/files?name=x", headers={"content-length": length})
    assert answer.status_code == 413 and "larger" in answer.json()["problem"]


def test_the_door_asks_nobody_outside() -> None:
    asking = {"urllib.request", "http.client", "httpx", "httpx2", "requests", "smtplib", "ftplib", "aiohttp"}
    for path in (Path(loraloom.__file__).parent / "web").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not asking & set(names), path


def test_the_description_is_complete_and_shows_no_pages_of_others(served: Served) -> None:
    described = served.client.get("/api/openapi.json").json()
    for path in ("/docs", "/redoc"):  # those of FastAPI fetch from other hosts; the page says that it has no such page
        text = served.client.get(path).text.lower()
        assert "swagger" not in text and "redoc" not in text and "://" not in text.replace("http://www.w3.org", "")
    known = {(context.path or "").replace(":path", "") for context in iter_route_contexts(served.app.routes)}
    assert {path for path in known if path.startswith("/api/")} - {"/api/openapi.json"} == set(described["paths"])
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), (method, path)
            assert {"4XX", "5XX"} <= set(route["responses"]), (method, path)
