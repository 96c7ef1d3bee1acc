"""A step whose loss or gradient is no number changes nothing on any rank; the run continues as if it had not been."""

from collections.abc import Callable

import pytest
import torch

from megaslm.slm.telemetry import SelectionSummary, summarise
from tests.rank_pool import RankPool
from tests.ranks.skipped_steps_worker import BAD_ROW, BAD_STEP, CASES, Run, train_with_and_without

REASONS = {
    "reference": f"3 targets cannot be sorted, their criterion is NaN or infinite, in the rows row {BAD_ROW}",
    "hidden": f"3 losses are NaN or infinite, in the rows row {BAD_ROW}",
    "infinite": f"3 losses are NaN or infinite, in the rows row {BAD_ROW}",
    "gradient": "the gradient is NaN or infinite although every loss is a number",
}
SKIPPING = {name: case for name, case in CASES.items() if case.ill != "unselected"}


RunsOf = Callable[[str], list[tuple[Run, Run]]]


@pytest.fixture(scope="module")
def runs_of(ranks: RankPool) -> RunsOf:
    """Of a case what each rank saw: with the bad step, and without it."""
    runs: dict[str, list[tuple[Run, Run]]] = {}

    def runs_of(name: str) -> list[tuple[Run, Run]]:
        if name not in runs:
            runs[name] = ranks.run(train_with_and_without, name)
        return runs[name]

    return runs_of


def summary_of(run: Run, step: int) -> SelectionSummary:
    return summarise(run.sums[step].tolist())


@pytest.mark.parametrize("name", SKIPPING)
def test_a_bad_step_is_as_if_it_had_not_been_made(runs_of: RunsOf, name: str) -> None:
    weights = []
    for bad, clean in runs_of(name):
        assert bad.weights.keys() == clean.weights.keys()
        for parameter, weight in clean.weights.items():
            assert torch.isfinite(weight).all()
            assert torch.equal(bad.weights[parameter], weight), parameter
        assert [step for step, skipped in bad.skipped.items() if skipped is not None] == [BAD_STEP]
        assert bad.selection[BAD_STEP] == bad.selection[BAD_STEP - 1]
        for step in clean.sums:
            assert bad.selection[step] == clean.selection[step]
            # A sum of weights is NaN where there are none.
            assert torch.allclose(bad.sums[step], clean.sums[step], rtol=0, atol=0, equal_nan=True)
            assert bad.norms[step] == clean.norms[step] > 0
        weights.append(bad.weights)
    for parameter, weight in weights[0].items():
        assert torch.equal(weight, weights[1][parameter]), parameter


@pytest.mark.parametrize("name", SKIPPING)
def test_all_ranks_name_the_rows_of_one(runs_of: RunsOf, name: str) -> None:
    reason = REASONS["reference" if name == "exact, lost in the model" else CASES[name].ill]
    for bad, _ in runs_of(name):
        assert bad.skipped[BAD_STEP] == reason


@pytest.mark.parametrize("name", SKIPPING)
def test_the_rows_of_a_skipped_step_count_as_read_and_nothing_as_selected(runs_of: RunsOf, name: str) -> None:
    bad, _ = runs_of(name)[0]
    summary = summary_of(bad, BAD_STEP)
    assert summary.domain_rows == (4, 4) == summary_of(bad, 1).domain_rows
    assert (summary.selected, summary.not_finite) == (0, 0)
    assert summary.valid == summary_of(bad, 1).valid


def test_losses_that_do_not_touch_the_gradient_leave_the_step_as_it_is(runs_of: RunsOf) -> None:
    bad, clean = runs_of("static, unselected")[0]
    assert set(bad.skipped.values()) == {None}
    summary = summary_of(bad, BAD_STEP)
    assert summary.not_finite == 3
    assert summary.all_loss is None
    assert summary.excess_quantiles == {}
    assert summary.selected_loss > 0
    assert all(torch.isfinite(weight).all() for weight in bad.weights.values())
    assert not all(torch.equal(weight, clean.weights[name]) for name, weight in bad.weights.items())


def test_every_stage_reports_the_norm_of_the_gradient(runs_of: RunsOf) -> None:
    norms = [runs_of(f"stage {stage}, exact")[0][1].norms for stage in (0, 1, 2)]
    for stage_norms in norms:
        assert stage_norms == pytest.approx(runs_of("exact")[0][1].norms, rel=1e-4)
