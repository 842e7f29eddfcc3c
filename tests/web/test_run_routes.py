"""Runs over the API: state, settings, curves, previews, files; and how they are steered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from loraloom.control import Request
from loraloom.events import Notice, RunFailed, RunResumed
from loraloom.studio.home import Home
from loraloom.studio.runs.control import FolderControl, RunLock
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import LOG_NAME
from loraloom.studio.runs.status import read_status
from loraloom.training.settings import TrainSettings
from served_home import STEPS, Served, make_run, step, train


def test_runs_are_listed_with_their_states(client: TestClient) -> None:
    lion, tiger = client.get("/api/runs").json()["runs"][:2]
    assert (lion["name"], lion["state"], lion["step"], lion["total_steps"]) == ("lion", "finished", STEPS, STEPS)
    assert (lion["best_loss"], lion["best_epoch"], lion["loss"]) == (0.21, 2, 0.3)
    assert (tiger["name"], tiger["state"], tiger["step"], tiger["loss"]) == ("tiger", "queued", 0, None)


def test_the_list_knows_what_has_happened_since(served: Served) -> None:
    run = make_run(served.home, "lynx")
    states = {one["name"]: one for one in served.client.get("/api/runs").json()["runs"]}
    assert states["lynx"]["state"] == "queued"
    train(run, RunFailed(0, "there is no checkpoint", "name one"))
    served.app.state.studio.runs.run("lynx").look()
    states = {one["name"]: one for one in served.client.get("/api/runs").json()["runs"]}
    assert (states["lynx"]["state"], states["lynx"]["problem"]) == ("failed", "there is no checkpoint")
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.rmdir()
    assert "lynx" not in {one["name"] for one in served.client.get("/api/runs").json()["runs"]}
    assert served.client.get("/api/runs/lynx").status_code == 404


def test_a_run_says_where_its_news_begin(served: Served) -> None:
    found = served.client.get("/api/runs/lion").json()
    assert found["offset"] == (served.home.runs / "lion" / LOG_NAME).stat().st_size
    assert found["notices"] == [{"text": "two pictures look alike", "level": "warning", "actions": []}]


def test_settings_are_shown_whole_and_by_what_was_chosen(served: Served) -> None:
    found = served.client.get("/api/runs/tiger/settings").json()
    assert found["chosen"]["adapter.rank"] == 12 and found["values"]["adapter"]["rank"] == 12
    assert found["chosen"]["name"] == "tiger" and "adapter.alpha" not in found["chosen"]
    assert found["toml"] == RunFolder(served.home.runs / "tiger").settings_path.read_text(encoding="utf-8")
    assert TrainSettings.load(served.home.runs / "tiger" / "settings.toml").name == "tiger"
    differences = served.client.get("/api/runs/tiger/differences", params={"other": "lion"}).json()["differences"]
    assert {
        "name": "adapter.rank",
        "mine": 12,
        "other": TrainSettings.model_fields["adapter"].get_default(call_default_factory=True).rank,
    } in differences
    assert {one["name"] for one in differences} == {"adapter.rank", "name"}
    assert served.client.get("/api/runs/tiger/differences", params={"other": "x"}).status_code == 404


def test_curves_are_thinned_and_keep_their_outliers(served: Served) -> None:
    whole = served.client.get("/api/runs/lion/curves").json()
    assert whole["steps"] == list(range(1, STEPS + 1)) and whole["losses"] == [1 / n for n in whole["steps"]]
    assert whole["rates"] == {"unet": [2e-4] * STEPS} and whole["validation"] == [[20, 0.21]]
    thin = served.client.get("/api/runs/lion/curves", params={"points": 5, "first": 3, "last": 30}).json()
    assert thin["total"] == 28 and thin["steps"][-1] == 30 and len(thin["steps"]) == 5
    first = range(3, thin["steps"][0] + 1)
    assert thin["losses"][0] == pytest.approx(sum(1 / n for n in first) / len(first))
    assert (thin["highest"][0], thin["lowest"][-1]) == (1 / 3, 1 / 30)
    assert thin["means"][-1] == pytest.approx(whole["means"][29])
    assert served.client.get("/api/runs/tiger/curves").json()["steps"] == []
    for wrong in ({"points": 1}, {"points": 10**9}, {"first": -1}, {"last": "x"}):
        answer = served.client.get("/api/runs/lion/curves", params=wrong)
        assert answer.status_code == 422 and answer.json()["field"] == next(iter(wrong))


def test_a_run_that_went_back_shows_what_counts(served: Served) -> None:
    run = make_run(served.home, "puma")
    train(run, *(step(number, 0.9) for number in range(1, 8)), RunResumed(4), step(5, 0.125))
    found = served.client.get("/api/runs/puma/curves").json()
    assert (found["steps"], found["losses"][-1]) == ([1, 2, 3, 4, 5], 0.125)


def test_previews_are_found_where_the_run_is_now(served: Served) -> None:
    (preview,) = served.client.get("/api/runs/lion/previews").json()["previews"]
    assert preview["prompt"] == "a <b>lion</b>" and preview["path"] == "previews/epoch0002-0.png"
    picture = served.client.get(f"/api/runs/lion/files/{preview['path']}")
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    assert picture.headers["content-disposition"].startswith("attachment; filename*=utf-8''epoch0002-0.png")
    assert picture.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert picture.headers["x-content-type-options"] == "nosniff"
    again = served.client.get(
        f"/api/runs/lion/files/{preview['path']}", headers={"if-none-match": picture.headers["etag"]}
    )
    assert again.status_code == 304 and again.content == b""


def test_files_are_listed_and_given_out(served: Served) -> None:
    files = {file["path"]: file["nbytes"] for file in served.client.get("/api/runs/lion/files").json()["files"]}
    assert files["weights/lion.safetensors"] == 2100 and "settings.toml" in files and LOG_NAME in files
    assert not any(part.startswith(".") for path in files for part in path.split("/"))
    lora = served.client.get("/api/runs/lion/files/weights/lion.safetensors")
    assert lora.content == b"weights" * 300 and lora.headers["content-length"] == "2100"
    assert lora.headers["content-type"] == "application/octet-stream"
    log = served.client.get(f"/api/runs/lion/files/{LOG_NAME}")
    assert log.headers["content-type"].startswith("text/plain")


def test_what_a_file_holds_is_never_a_page(served: Served) -> None:
    run = served.home.runs / "lion"
    for name in ("evil.html", "evil.svg", "evil.js", "evil.xhtml", "evil"):
        (run / name).write_text("<script>alert(1)</script>", encoding="utf-8")
        answer = served.client.get(f"/api/runs/lion/files/{name}")
        assert answer.headers["content-type"] == "application/octet-stream", name
        assert answer.headers["content-disposition"].startswith("attachment"), name
        (run / name).unlink()
    (run / 'a"b\nc\u732b.txt').write_text("x", encoding="utf-8") if Path("/").anchor == "/" else None
    answer = served.client.get("/api/runs/lion/files/a%22b%0Ac%E7%8C%AB.txt")
    if answer.status_code == 200:
        assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''a%22b%0Ac%E7%8C%AB.txt"


def test_the_end_of_the_output_is_one_click_away(served: Served) -> None:
    assert served.client.get("/api/runs/tiger/output").json() == {"lines": []}
    log = served.home.runs / "tiger" / "output.log"
    log.write_bytes(b"one\n" * 5000 + b"last \x1b[31mred\xff\n")
    lines = served.client.get("/api/runs/tiger/output", params={"lines": 3}).json()["lines"]
    assert lines == ["one", "one", "last \\x1b[31mred\ufffd"]
    log.unlink()


def test_a_run_is_paused_and_stopped_as_from_a_terminal(served: Served) -> None:
    run = served.home.runs / "tiger"
    refused = served.client.post("/api/runs/tiger/pause", json={})
    assert refused.status_code == 409 and "not being trained" in refused.json()["problem"]
    assert refused.json()["actions"] == [{"action": "list_runs", "text": "the overview of the runs", "values": {}}]
    with RunLock(run):
        control = FolderControl(run)
        for path, body, wish in (
            ("pause", {}, Request.PAUSE),
            ("resume", None, Request.GO),
            ("pause", {"free": True}, Request.LEAVE),
            ("stop", {}, Request.STOP),
            ("stop", {"save": False}, Request.DISCARD),
        ):
            answer = served.client.post(f"/api/runs/tiger/{path}", json=body)
            assert answer.status_code == 200 and answer.json()["name"] == "tiger"
            assert control() is wish, path
    wrong = served.client.post("/api/runs/tiger/stop", json={"save": "perhaps"})
    assert wrong.status_code == 422 and wrong.json()["field"] == "save" and "perhaps" in wrong.json()["problem"]
    assert served.client.post("/api/runs/tiger/stop", content=b"{").status_code == 422


def test_a_run_that_cannot_go_on_says_why(client: TestClient) -> None:
    refused = client.post("/api/runs/lion/resume")
    assert refused.status_code == 409 and "is finished after 37 steps" in refused.json()["problem"]
    assert client.post("/api/runs/nobody/resume").status_code == 404


def test_a_damaged_log_costs_neither_the_list_nor_the_run(served: Served) -> None:
    run = make_run(served.home, "ocelot")
    lines = [
        '{"event": "StepFinished", "step": "seven"}',
        '{"event": "StepFinished", "step": 1e999, "epoch": null}',
        "[]",
    ]
    lines += [
        '{"event": "Notice", "text": 7}',
        '{"event": "PreviewSaved", "path": {}, "prompt": []}',
        "\x00\xff",
        "{" * 9000,
    ]
    with (run / LOG_NAME).open("a", encoding="utf-8") as log:
        log.write("\n".join([*lines, json.dumps({"event": "Notice", "text": "\ud800", "level": "info"})]) + "\n")
    train(run, Notice("whole again"), step(1, float("nan")))
    for path in ("", "/ocelot", "/ocelot/curves", "/ocelot/previews", "/ocelot/settings"):
        assert served.client.get(f"/api/runs{path}").status_code == 200, path
    assert served.client.get("/api/runs/ocelot").json()["notices"][-1]["text"] == "whole again"
    (run / "settings.toml").write_text("steps = [", encoding="utf-8")
    damaged = served.client.get("/api/runs/ocelot/settings")
    assert damaged.status_code == 422 and "not valid TOML" in damaged.json()["problem"]


def test_a_home_that_was_moved_keeps_its_runs(home: Home, served: Served) -> None:
    assert read_status(home.runs / "lion").name == served.client.get("/api/runs/lion").json()["run"]["name"]
