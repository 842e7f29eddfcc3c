"""``loraloom studio``: one line with the address, one server a home, a sentence where it cannot start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from loraloom.studio.home import HomeLock

Command = Callable[..., Any]
_LINK = re.compile(r"http://127\.0\.0\.1:(\d+)/enter\?key=([\w-]+)")


def test_a_server_from_its_line_to_its_end(tmp_path: Path, command: Command) -> None:
    home = tmp_path / "my home"
    words = [sys.executable, "-m", "loraloom", "studio", str(home), "--port", "0", "--no-browser"]
    own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32" else {}
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **own)  # type: ignore[call-overload]
    try:
        line = server.stdout.readline()
        found = _LINK.search(line)
        assert found and line.startswith(f"the studio of {home}: "), line
        address = f"http://127.0.0.1:{found[1]}"
        with httpx2.Client(trust_env=False, follow_redirects=False, timeout=60) as client:
            assert client.get(f"{address}/api/health").status_code == 401
            assert client.get(found[0]).headers["location"] == "/"
            health = client.get(f"{address}/api/health").json()
            assert health["home"] == str(home) and health["notices"] == []
            assert "server" not in client.get(f"{address}/api/runs").headers
            # A second one of the same home leads to the first.
            again = command("studio", home, "--no-browser")
            other = _LINK.search(again.out)
            assert other and again.code == 0 and "is open already" in again.out and other[1] == found[1]
        with httpx2.Client(trust_env=False, follow_redirects=False, timeout=60) as client:
            assert client.get(other[0]).headers["location"] == "/"
            taken = command("studio", tmp_path / "another", "--port", found[1], "--no-browser")
            assert taken.code == 1 and taken.error_lines == [
                f"error: port {found[1]} of 127.0.0.1 is taken by another program",
                f"hint:  --port {int(found[1]) + 1} takes another one; 0 takes any that is free",
            ]
            # The server works through the queue: a job that cannot be done says why.
            settings = {"checkpoint": "nowhere.safetensors", "dataset": {"folder": "datasets"}, "name": "lion"}
            made = client.post(f"{address}/api/jobs", json={"kind": "train", "settings": settings})
            assert (made.status_code, made.json()["run"]) == (201, "lion")
            with client.stream("GET", f"{address}/api/jobs/events") as news:
                assert next(line for line in news.iter_lines() if '"failed"' in line and "nowhere.safetensors" in line)
                # A window that is open does not hold up the end.
                server.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
                rest, _ = server.communicate(timeout=60)
        assert server.returncode == 128 + (signal.SIGBREAK if sys.platform == "win32" else signal.SIGINT)
        assert rest == "stopped: what runs goes on; `loraloom studio` shows it again\n", "no address is logged"
    finally:
        server.kill()
        server.wait()
    assert HomeLock(home, "server").facts() is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--host", "0.0.0.0"], "other machines can reach this address, so the server needs a password"),
        (["--host", "no such host.", "--password-file", "long.txt"], "there is no such address"),
        (["--password-file", "nowhere.txt"], "there is no such file"),
        (["--password-file", "empty.txt"], "there is no password in it"),
        (["--password-file", "short.txt"], "the password has 6 characters, and needs 8"),
    ],
    ids=["host", "unknown", "missing", "empty", "short"],
)
def test_what_cannot_start_says_so_in_a_sentence(words: list[str], problem: str, command: Command) -> None:
    Path("empty.txt").write_text("\n", encoding="utf-8")
    Path("short.txt").write_text("secret\nsecond line\n", encoding="utf-8")
    Path("long.txt").write_text("seven wild geese\n", encoding="utf-8")
    outcome = command("studio", "home", "--no-browser", "--port", "0", *words)
    assert outcome.code == 1 and problem in outcome.error_lines[0] and outcome.error_lines[1].startswith("hint:  ")
    assert outcome.out == "" and "secret" not in outcome.err


def test_a_home_that_cannot_be_one_says_so(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    for folder in (file, file / "home"):
        outcome = command("studio", folder, "--no-browser", "--port", "0")
        assert outcome.code == 1 and len(outcome.error_lines) == 2 and str(file) in outcome.error_lines[0]
    if os.name != "nt" and os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert "no permission" in command("studio", closed, "--no-browser", "--port", "0").error_lines[0].lower()


def test_a_home_that_another_machine_has_open_is_left_alone(tmp_path: Path, command: Command) -> None:
    from loraloom.studio.home import Home

    Home.open(tmp_path).close()
    with HomeLock(tmp_path, "server") as lock:
        lock.leave()
        assert lock.try_enter(address="http://127.0.0.1:1", host="another-machine")
        outcome = command("studio", tmp_path, "--no-browser", "--port", "0")
    assert outcome.code == 1 and "is open already by process" in outcome.error_lines[0]
    assert "on another-machine" in outcome.error_lines[0]


def test_a_taken_port_is_noticed_before_anything_is_said(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        outcome = command("studio", "home", "--no-browser", "--port", port)
    assert outcome.code == 1 and outcome.out == "" and f"port {port}" in outcome.error_lines[0]
