"""The queue over the API: new jobs, their order, what is refused, and how a run gets into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from loraloom.control import Order, Request
from loraloom.studio.runs.control import FolderControl, RunLock
from loraloom.studio.runs.folder import RunFolder
from served_home import Served, make_run, step, train


@pytest.fixture
def jobs(served: Served) -> Iterator[list[dict[str, Any]]]:
    """Three jobs that wait."""
    made = []
    for epochs in (2, 3, 4):
        answer = served.client.post("/api/jobs", json={"kind": "demo", "settings": {"epochs": epochs}})
        assert answer.status_code == 201
        made.append(answer.json())
    yield made
    for job in served.app.state.studio.queue.jobs():
        if not job.is_over:
            served.app.state.studio.queue.cancel(job.id)
        served.app.state.studio.queue.forget(job.id)


def waiting(served: Served) -> list[int]:
    served.app.state.studio.listing._read = float("-inf")
    return [job["id"] for job in served.client.get("/api/jobs").json()["jobs"] if job["position"]]


def test_jobs_wait_in_an_order_that_can_be_changed(served: Served, jobs: list[dict[str, Any]]) -> None:
    one, two, three = (job["id"] for job in jobs)
    assert (jobs[0]["kind"], jobs[0]["title"], jobs[0]["state"], jobs[0]["run"]) == ("demo", "a style", "queued", None)
    assert waiting(served) == [one, two, three]
    assert served.client.post(f"/api/jobs/{three}/move", json={"before": one}).json()["position"] == 1
    assert waiting(served) == [three, one, two]
    assert served.client.post(f"/api/jobs/{three}/move", json={}).json()["position"] == 3
    assert served.client.post(f"/api/jobs/{two}/hold").json()["held"] is True
    assert served.client.post(f"/api/jobs/{two}/release").json()["held"] is False
    assert served.client.get(f"/api/jobs/{two}").json()["id"] == two
    assert served.client.get(f"/api/jobs/{two}/output").json() == {"lines": []}
    cancelled = served.client.post(f"/api/jobs/{two}/cancel", json={})
    assert cancelled.json()["state"] == "stopped" and waiting(served) == [one, three]
    assert served.client.post(f"/api/jobs/{two}/retry").json()["state"] == "queued"
    assert served.client.post(f"/api/jobs/{two}/cancel", json={"save": False}).json()["state"] == "stopped"
    assert served.client.delete(f"/api/jobs/{two}").status_code == 204
    assert served.client.get(f"/api/jobs/{two}").status_code == 404


def test_what_a_job_cannot_do_is_said(served: Served, jobs: list[dict[str, Any]]) -> None:
    number = jobs[0]["id"]
    refused = served.client.delete(f"/api/jobs/{number}")
    assert refused.status_code == 409 and refused.json()["actions"][0]["action"] == "cancel_job"
    assert refused.json()["actions"][0]["values"] == {"job": str(number)}
    for path, body in (("pause", {}), ("resume", None), ("pause", {"free": True})):
        assert served.client.post(f"/api/jobs/{number}/{path}", json=body).status_code == 409, path
    for wrong in (0, -1, 2**63, "x", 999_999):
        answer = served.client.get(f"/api/jobs/{wrong}")
        assert answer.status_code == (404 if wrong == 999_999 else 422) and answer.json()["problem"]
    assert served.client.post(f"/api/jobs/{number}/move", json={"before": 999_999}).status_code == 422


@pytest.mark.parametrize(
    ("wish", "problem"),
    [
        ({"kind": "dance", "settings": {}}, "unknown kind of job 'dance'"),
        ({"kind": "demo", "settings": {"epochs": 0}}, "epochs"),
        ({"kind": "train", "settings": {}}, "checkpoint"),
        ({"kind": "train", "settings": {"stepz": 3}}, "stepz"),
        ({"kind": "demo", "settings": []}, "settings"),
        ({"kind": "demo"}, "settings"),
        ({}, "kind"),
    ],
    ids=str,
)
def test_settings_that_are_wrong_are_refused_before_anything_is_made(
    wish: dict[str, Any], problem: str, served: Served
) -> None:
    before = sorted(served.home.path.rglob("*"))
    answer = served.client.post("/api/jobs", json=wish)
    assert answer.status_code == 422 and problem in answer.json()["problem"], answer.json()
    assert [path for path in sorted(served.home.path.rglob("*")) if path not in before] == []


def test_a_run_of_the_page_has_the_settings_of_one_of_the_terminal(served: Served) -> None:
    settings = {"checkpoint": "base.safetensors", "dataset": {"folder": "datasets/lions"}, "name": "paged", "steps": 7}
    job = served.client.post("/api/jobs", json={"kind": "train", "settings": settings, "held": True}).json()
    assert (job["run"], job["held"], job["state"]) == ("paged", True, "queued")
    text = RunFolder(served.home.runs / "paged").settings_path.read_text(encoding="utf-8")
    given = [f"checkpoint='{served.home.path / 'base.safetensors'}'", "steps=7"]
    given += [f"dataset.folder='{served.home.datasets / 'lions'}'"]
    typed = make_run(served.home, "typed", *given)
    assert text.replace("paged", "typed") == RunFolder(typed).settings_path.read_text(encoding="utf-8")
    served.client.post(f"/api/jobs/{job['id']}/cancel", json={})


def test_a_run_that_was_left_goes_on_in_the_queue(served: Served) -> None:
    make_run(served.home, "left")
    assert served.client.post("/api/runs/left/resume").status_code == 200
    (job,) = [job for job in served.app.state.studio.queue.jobs() if job.folder.name == "left"]
    assert (job.kind, job.state, job.position > 0) == ("train", "queued", True)
    assert served.client.post("/api/runs/left/branch", json={"step": 3, "changes": ["name=x"]}).status_code == 409
    assert served.client.post("/api/runs/left/branch", json={"changes": ["nonsense"]}).status_code == 422
    served.app.state.studio.queue.cancel(job.id)


def test_a_run_saves_and_paints_when_it_is_asked_to(served: Served) -> None:
    run = make_run(served.home, "asked")
    assert served.client.post("/api/runs/asked/save").status_code == 409
    train(run, step(1))
    with RunLock(run):
        control = FolderControl(run)
        assert served.client.post("/api/runs/asked/save").status_code == 200
        assert served.client.post("/api/runs/asked/preview").status_code == 200
        assert control() is Request.GO
        assert set(control.take_orders()) == set(Order)


def test_the_queue_can_be_told_to_stop_and_how_much_to_do(client: TestClient) -> None:
    assert client.post("/api/jobs/stop-after", json={"stop": True}).status_code == 204
    assert client.post("/api/jobs/limits", json={"device": 2, "beside": 3}).json() == {"device": 2, "beside": 3}
    found = client.get("/api/jobs").json()
    assert found["stop_after_this"] is True and found["limits"] == {"device": 2, "beside": 3}
    assert found["works"] is False and {kind["name"] for kind in found["kinds"]} >= {"train", "sweep", "demo"}
    for wrong in ({"device": 0}, {"beside": 65}, {"device": "many"}):
        assert client.post("/api/jobs/limits", json=wrong).json()["field"] == next(iter(wrong))
    client.post("/api/jobs/limits", json={})
    client.post("/api/jobs/stop-after", json={"stop": False})
