"""Requests that the description of the API allows, and others: none ends in a fault of the program."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from served_home import ADDRESS, Served

ENDLESS = "/events"
LEAVES = "/api/session/end"
FORM = {"problem", "hint", "actions", "field"}


def operations(served: Served) -> list[Any]:
    """Every route of the description; a stream of news has no end, and the way out ends the session."""
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    found = [result.ok() for result in schema.get_all_operations()]
    return [operation for operation in found if not operation.path.endswith(ENDLESS) and operation.path != LEAVES]


def explore(served: Served, examples: int) -> None:
    """Send every route made-up requests, such as are allowed and such as are not."""
    client = served.client

    def check(case: Any) -> None:
        request = case.as_transport_kwargs(base_url=ADDRESS)
        body = request.get("data")
        answer = client.request(
            request["method"],
            request["url"],
            params=request.get("params"),
            headers={name: value for name, value in (request.get("headers") or {}).items() if name.isascii()},
            cookies=None,
            **({"content": body} if isinstance(body, str | bytes) else {"json": request.get("json")}),
        )
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()) == FORM and answer.json()["problem"], case.as_curl_command()

    for operation in operations(served):
        for mode in GenerationMode:
            run = settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )(given(case=operation.as_strategy(generation_mode=mode))(check))
            # A route that is given nothing can be given nothing wrong.
            with contextlib.suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else contextlib.nullcontext():
                run()


def test_no_request_ends_in_a_fault(served: Served) -> None:
    assert len(operations(served)) > 15
    explore(served, 3)


@pytest.mark.slow
def test_no_request_of_many_ends_in_a_fault(served: Served) -> None:
    explore(served, 300)
