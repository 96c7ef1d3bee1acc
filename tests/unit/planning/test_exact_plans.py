"""An exact selection over several micro-steps is planned as the run would decide it."""

from dataclasses import replace
from pathlib import Path

import pytest

from megaslm.planning.machine import GIB, machine_of
from megaslm.planning.plan import Plan, Request, make_plan

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "rho-math-1b" / "slm.yaml"
MACHINE = machine_of("h100-80g", 32)
EXACT, RECOMPUTED = "slm.mode=exact", "model.recompute=full"


def planned(*overrides: str, memory_gib: float = 79) -> Plan:
    machine = replace(MACHINE, memory_bytes=int(memory_gib * GIB))
    return make_plan(CONFIG, overrides, Request(machine, mfu=0.3))


def hours(plan: Plan) -> float:
    assert plan.training is not None
    return plan.training.hours


def test_a_second_pass_is_counted_in_the_hours() -> None:
    running, exact = planned(), planned(EXACT, "slm.exact_by=second_pass")
    assert running.exact is None
    assert exact.exact is not None
    assert not exact.exact.keeps_graphs
    assert hours(exact) == pytest.approx(hours(running) * 4 / 3)
    assert exact.network.bytes_per_second == pytest.approx((running.network.bytes_per_second or 0) * 3 / 4)


def test_kept_graphs_are_counted_in_the_memory() -> None:
    running, exact = planned(RECOMPUTED), planned(RECOMPUTED, EXACT)
    assert exact.exact is not None
    assert exact.exact.keeps_graphs
    assert exact.exact.graph_bytes == running.memory.activations
    assert exact.memory.activations == 2 * running.memory.activations
    assert hours(exact) == hours(running)


def test_kept_graphs_may_be_asked_for_where_they_do_not_fit() -> None:
    asked = planned(EXACT, "slm.exact_by=kept_graphs", memory_gib=40)
    assert asked.exact is not None
    assert asked.exact.keeps_graphs
    assert not asked.fits


def test_the_way_depends_on_the_memory_left() -> None:
    memory = planned(RECOMPUTED).memory
    edge = (memory.state_bytes + 2 * memory.activations) / GIB
    ways = [planned(RECOMPUTED, EXACT, memory_gib=edge + more).exact for more in (-0.01, 0.01)]
    assert [way is not None and way.keeps_graphs for way in ways] == [False, True]


def test_layers_that_leave_tokens_out_keep_the_keys_of_all() -> None:
    exact, filtered = planned(RECOMPUTED), planned(RECOMPUTED, "slm.backward=filtered", "slm.filtered_layers=0.5")
    layers, key_heads, head_size = 22, 4, 64
    rows = exact.batches.micro_batch_rows * exact.batches.seq_len
    keys = layers // 2 * 2 * rows * key_heads * head_size * 2
    assert filtered.memory.activations == exact.memory.activations + keys


def test_one_micro_step_needs_neither() -> None:
    assert planned(EXACT, "train.micro_batch_rows=16").exact is None


def test_signed_weights_need_no_room_for_a_forecast() -> None:
    signed = ("slm.weight.by=signed", "slm.weight.negative=0.1", "slm.weight.bound_nats=8")

    def head_bytes(head: str, *weights: str) -> int:
        return planned("model.precision=fp32", f"slm.head={head}", *weights).memory.head

    assert head_bytes("bracket", *signed) == head_bytes("recompute", *signed) < head_bytes("bracket")
