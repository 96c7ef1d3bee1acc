"""`--fit` finds the smallest change, and it is verified by planning anew."""

from dataclasses import replace
from pathlib import Path

import pytest

from megaslm.planning.fit import find_fit
from megaslm.planning.machine import GIB, Machine, machine_of
from megaslm.planning.plan import Request, make_plan

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "rho-math-1b" / "slm.yaml"
EIGHT, MANY = machine_of("h100-80g", 8), machine_of("h100-80g", 32)


def request(memory_gib: float, machine: Machine = EIGHT) -> Request:
    return Request(replace(machine, memory_bytes=int(memory_gib * GIB)), mfu=0.3)


@pytest.mark.parametrize(
    ("memory_gib", "overrides"),
    [
        (79, ()),
        (30, ("train.micro_batch_rows=4",)),
        (8, ("train.micro_batch_rows=1", "model.recompute=selective")),
    ],
)
def test_the_smallest_change_comes_first(memory_gib: float, overrides: tuple[str, ...]) -> None:
    found = find_fit(CONFIG, (), request(memory_gib))
    assert found.overrides == overrides
    assert found.plan.fits
    assert found.plan.memory == make_plan(CONFIG, overrides, request(memory_gib)).memory


def test_one_micro_step_is_told_where_it_fits() -> None:
    one = make_plan(CONFIG, (), request(79, MANY)).one_micro_step
    assert one is not None
    changed = make_plan(CONFIG, [f"train.micro_batch_rows={one.rows}"], request(79, MANY))
    assert (changed.batches.micro_steps, changed.one_micro_step) == (1, None)
    assert (one.peak_bytes, one.network_bytes_per_step) == (changed.memory.peak_bytes, changed.network.bytes_per_step)
    smaller = make_plan(CONFIG, (), request(one.peak_bytes / GIB / 0.95, MANY))
    assert smaller.fits
    assert smaller.one_micro_step is None


def test_where_nothing_fits_the_least_is_shown() -> None:
    found = find_fit(CONFIG, (), request(1))
    assert not found.plan.fits
    assert {override.partition("=")[0] for override in found.overrides} >= {"train.micro_batch_rows", "zero.stage"}
