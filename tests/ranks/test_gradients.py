"""Gradient equality: ZeRO-3 on 1 and 2 ranks against plain PyTorch in float64 over the whole batch."""

import json
from pathlib import Path

import pytest

from tests.launched import ROOT, run_ranks


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("cases_named", "count"), [("in turn", 43), pytest.param("every", 160, marks=pytest.mark.slow)]
)
def test_every_parameter_gets_the_gradient_of_the_definition(
    cases_named: str, count: int, world_size: int, tmp_path: Path
) -> None:
    output = tmp_path / "errors.json"
    worker = str(ROOT / "tests/ranks/gradient_worker.py")
    run_ranks(world_size, [worker, cases_named, str(output)], timeout_seconds=280)
    cases = json.loads(output.read_text())
    assert len(cases) == count
    wrong = [
        f"{case['case']} {name}: {error:.1e}"
        for case in cases
        for name, error in case["errors"].items()
        # The cache of a loss-dependent choice is kept in bf16.
        if not error < (1e-3 if case["in_bf16"] else 1e-5)
    ]
    assert not wrong, "\n".join(wrong)
