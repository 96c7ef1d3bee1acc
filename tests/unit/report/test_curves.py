"""Curves: what a run had spent at its steps, thinned where there are many steps."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megaslm.report.curves import ALL_POINTS, MOST_MEASURED, MOST_POINTS, run_entries
from megaslm.report.runs import ReportedRun, read_runs
from tests.reported import (
    FORWARD_FLOPS,
    PLACE,
    STEP_TOKENS,
    STEPS,
    cost_of,
    step_line,
    unpacked,
    validation_line,
    write_run,
)

TOKENS = STEP_TOKENS * np.arange(1, STEPS + 1)


def reported(folder: Path) -> ReportedRun:
    (run,) = read_runs([folder])
    return run


def entry_of(run: ReportedRun) -> dict[str, Any]:
    (entry,) = run_entries([run])
    return entry


def write_steps(folder: Path, steps: list[dict[str, object]]) -> ReportedRun:
    write_run(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return reported(folder)


def test_seconds_follow_from_the_pace_and_end_where_cost_json_says(tmp_path: Path) -> None:
    steps = [step_line(step, tokens_per_second=128.0 if step == 1 else 64.0) for step in range(1, STEPS + 1)]
    alone = write_steps(tmp_path / "alone", steps)
    assert alone.spent.seconds is not None
    assert alone.spent.seconds.tolist() == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    write_steps(tmp_path / "counted", steps)
    (tmp_path / "counted" / "cost.json").write_text(json.dumps(cost_of(seconds=22.0, gpu_hours=0.5)))
    counted = reported(tmp_path / "counted")
    assert counted.spent.seconds is not None
    assert counted.spent.seconds.tolist() == [2.0, 6.0, 10.0, 14.0, 18.0, 22.0]
    assert counted.spent.gpu_hours is not None
    assert counted.spent.gpu_hours[-1] == pytest.approx(0.5)
    assert alone.spent.gpu_hours is None


def test_a_cost_json_of_an_earlier_save_scales_at_its_tokens(tmp_path: Path) -> None:
    cost = cost_of(seconds=40.0)
    cost["training"] |= {"tokens_seen": 3 * STEP_TOKENS, "tokens_selected": 150}
    run = reported(write_run(tmp_path / "run", keep_ratio="0.5", cost=cost))
    assert run.spent.seconds is not None
    assert np.interp(3 * STEP_TOKENS, run.spent.tokens, run.spent.seconds) == pytest.approx(40.0)
    assert run.spent.selected_tokens.tolist() == pytest.approx([50.0, 100.0, 150.0, 200.0, 250.0, 300.0])


def test_a_selective_run_spends_the_operations_of_all_its_tokens(tmp_path: Path) -> None:
    run = reported(write_run(tmp_path / "run", keep_ratio="0.25"))
    assert run.spent.flops is not None
    assert run.spent.flops.tolist() == pytest.approx((3 * FORWARD_FLOPS * TOKENS).tolist())
    assert run.spent.selected_tokens.tolist() == pytest.approx((0.25 * TOKENS).tolist())


def test_validations_stand_where_they_were_made(tmp_path: Path) -> None:
    (found,) = entry_of(reported(write_run(tmp_path / "run", losses=(4.0, 3.0, 2.5))))["validations"]
    assert found["place"] == PLACE
    assert unpacked(found["step"]).tolist() == [0, 3, 6]
    assert unpacked(found["seconds"]).tolist() == pytest.approx([0.0, 6.0, 12.0])
    assert unpacked(found["loss"]).tolist() == [4.0, 3.0, 2.5]


def test_many_steps_share_points_that_are_their_means(tmp_path: Path) -> None:
    count = 2 * MOST_POINTS
    steps = [step_line(step, loss=float(step), all_loss=None if step % 2 else 2.0) for step in range(1, count + 1)]
    series = entry_of(write_steps(tmp_path / "run", steps))["series"]
    assert (series["points"], series["steps_per_point"]) == (MOST_POINTS, 2.0)
    assert unpacked(series["step"])[:3].tolist() == [2.0, 4.0, 6.0]
    assert unpacked(series["step"])[-1] == count
    assert unpacked(series["loss"])[:3].tolist() == [1.5, 3.5, 5.5]
    assert set(unpacked(series["all_loss"]).tolist()) == {2.0}
    assert np.isnan(unpacked(series["threshold"])).all()


def test_many_validations_are_thinned_between_the_first_and_the_last(tmp_path: Path) -> None:
    lines = [validation_line(step, float(step)) for step in range(3 * MOST_MEASURED)]
    (found,) = entry_of(write_steps(tmp_path / "run", lines))["validations"]
    losses = unpacked(found["loss"])
    assert (len(losses), losses[0], losses[-1]) == (MOST_MEASURED, 0.0, 3 * MOST_MEASURED - 1)


def test_many_runs_share_the_room_of_the_page(tmp_path: Path) -> None:
    run = write_steps(tmp_path / "run", [step_line(step) for step in range(1, MOST_POINTS + 1)])
    count = 2 * ALL_POINTS // MOST_POINTS
    assert {entry["series"]["points"] for entry in run_entries([run] * count)} == {MOST_POINTS // 2}


def test_a_run_without_a_step_has_empty_curves(tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    runs = read_runs([tmp_path / "whole", write_run(tmp_path / "begun", steps=0, losses=())])
    series = entry_of(runs[1])["series"]
    assert series["points"] == 0
    assert unpacked(series["tokens"]).shape == (0,)


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    steps = [step_line(1), step_line(2, loss=None), step_line(3)]
    losses = unpacked(entry_of(write_steps(tmp_path / "run", steps))["series"]["loss"])
    assert losses[0] == 4.0
    assert math.isnan(losses[1])


def test_a_domain_has_what_was_read_and_lost_of_it(tmp_path: Path) -> None:
    found = entry_of(reported(write_run(tmp_path / "run", keep_ratio="0.5")))["domains"]
    assert found == [
        {
            "name": "a",
            "tokens": float(STEPS * STEP_TOKENS),
            "passes": 0.6,
            "selected_ratio": 0.5,
            "validation_loss_first": 4.0,
            "validation_loss_last": 1.0,
        }
    ]
