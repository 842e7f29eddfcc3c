from __future__ import annotations

import pytest

from golden_runs import STEPS, areas, cases, expected, losses


@pytest.mark.parametrize(("area", "case"), [(area, case) for area in areas() for case in cases(area)])
def test_the_losses_of_a_toy_run_are_those_on_file(area: str, case: str) -> None:
    found = losses(cases(area)[case])
    assert len(found) == STEPS
    assert found == pytest.approx(expected(area, case), rel=2e-4, abs=1e-6)


def test_every_case_of_an_area_says_something_of_its_own() -> None:
    for area in areas():
        seen: dict[tuple[float, ...], str] = {}
        for case in cases(area):
            numbers = tuple(round(number, 7) for number in expected(area, case))
            assert numbers not in seen or case.endswith("(same)"), f"{area}: {case} and {seen[numbers]} do the same"
            seen[numbers] = case
