from __future__ import annotations

import pytest

from golden_runs import STEPS, areas, cases, expected, losses


def tolerance(step: int) -> float:
    """Processors round otherwise, and every step makes more of it: of the first steps nearly nothing is allowed.

    With other instructions (ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41) the most that was seen is 4e-3.
    """
    return min(1e-2, 2e-5 * 3.0**step)


@pytest.mark.parametrize(("area", "case"), [(area, case) for area in areas() for case in cases(area)])
def test_the_losses_of_a_toy_run_are_those_on_file(area: str, case: str) -> None:
    found = losses(cases(area)[case])
    assert len(found) == STEPS
    for step, (loss, on_file) in enumerate(zip(found, expected(area, case), strict=True)):
        assert loss == pytest.approx(on_file, rel=tolerance(step), abs=1e-6), f"step {step + 1}"


def test_every_case_of_an_area_says_something_of_its_own() -> None:
    for area in areas():
        seen: dict[tuple[float, ...], str] = {}
        for case in cases(area):
            numbers = tuple(round(number, 7) for number in expected(area, case))
            assert numbers not in seen or case.endswith("(same)"), f"{area}: {case} and {seen[numbers]} do the same"
            seen[numbers] = case
