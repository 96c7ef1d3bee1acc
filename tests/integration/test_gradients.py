"""Gradient equality: ZeRO-3 on 1 and 2 ranks against plain PyTorch in float64 over the whole batch."""

import json
from pathlib import Path

import pytest

from tests.ranks import ROOT, run_ranks


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_parameter_gets_the_gradient_of_the_definition(world_size: int, tmp_path: Path) -> None:
    output = tmp_path / "errors.json"
    run_ranks(world_size, [str(ROOT / "tests/integration/gradient_worker.py"), str(output)])
    cases = json.loads(output.read_text())
    assert len(cases) == 13
    wrong = [
        f"{case} {name}: {error:.1e}"
        for case, errors in cases.items()
        for name, error in errors.items()
        if not error < 1e-5
    ]
    assert not wrong, "\n".join(wrong)
