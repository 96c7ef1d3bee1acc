"""A step whose loss or gradient is no number changes nothing on any rank; the run goes on as if it had not been."""

from pathlib import Path

import pytest
import torch

from megaslm.slm.telemetry import SelectionSummary, summarise
from tests.forks import fork_two_ranks, statuses_of
from tests.ranks.skipped_steps_worker import BAD_ROW, BAD_STEP, CASES, Run, train_every_case

REASONS = {
    "reference": f"3 targets cannot be ranked, their score is NaN or infinite, in the rows row {BAD_ROW}",
    "hidden": f"3 losses are NaN or infinite, in the rows row {BAD_ROW}",
    "infinite": f"3 losses are NaN or infinite, in the rows row {BAD_ROW}",
    "gradient": "the gradient is NaN or infinite although every loss is a number",
}
SKIPPING = {name: case for name, case in CASES.items() if case.ill != "unselected"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skipped")
    assert statuses_of(fork_two_ranks(lambda: train_every_case(folder))) == [0, 0]
    return folder


def runs_of(folder: Path, name: str, rank: int) -> tuple[Run, Run]:
    """With the bad step, and without it."""
    with_it, without_it = torch.load(folder / f"{name}-{rank}.pt", weights_only=False)
    return with_it, without_it


def summary_of(run: Run, step: int) -> SelectionSummary:
    return summarise(run.sums[step].tolist())


@pytest.mark.parametrize("name", SKIPPING)
def test_a_bad_step_is_as_if_it_had_not_been_made(folder: Path, name: str) -> None:
    weights = []
    for rank in (0, 1):
        bad, clean = runs_of(folder, name, rank)
        assert bad.weights.keys() == clean.weights.keys()
        for parameter, weight in clean.weights.items():
            assert torch.isfinite(weight).all()
            assert torch.equal(bad.weights[parameter], weight), parameter
        assert [step for step, skipped in bad.skipped.items() if skipped is not None] == [BAD_STEP]
        assert bad.selection[BAD_STEP] == bad.selection[BAD_STEP - 1]
        for step in clean.sums:
            assert bad.selection[step] == clean.selection[step]
            assert torch.equal(bad.sums[step], clean.sums[step])
            assert bad.norms[step] == clean.norms[step] > 0
        weights.append(bad.weights)
    for parameter, weight in weights[0].items():
        assert torch.equal(weight, weights[1][parameter]), parameter


@pytest.mark.parametrize("name", SKIPPING)
def test_all_ranks_name_the_rows_of_one(folder: Path, name: str) -> None:
    reason = REASONS["reference" if name == "exact, lost in the model" else CASES[name].ill]
    for rank in (0, 1):
        assert runs_of(folder, name, rank)[0].skipped[BAD_STEP] == reason


@pytest.mark.parametrize("name", SKIPPING)
def test_the_rows_of_a_skipped_step_count_as_read_and_nothing_as_selected(folder: Path, name: str) -> None:
    bad, _ = runs_of(folder, name, 0)
    summary = summary_of(bad, BAD_STEP)
    assert summary.domain_rows == (4, 4) == summary_of(bad, 1).domain_rows
    assert (summary.selected, summary.not_finite) == (0, 0)
    assert summary.valid == summary_of(bad, 1).valid


def test_losses_that_do_not_touch_the_gradient_leave_the_step_as_it_is(folder: Path) -> None:
    bad, clean = runs_of(folder, "static, unselected", 0)
    assert set(bad.skipped.values()) == {None}
    summary = summary_of(bad, BAD_STEP)
    assert summary.not_finite == 3
    assert summary.all_loss is None
    assert summary.excess_quantiles == {}
    assert summary.selected_loss > 0
    assert all(torch.isfinite(weight).all() for weight in bad.weights.values())
    assert not all(torch.equal(weight, clean.weights[name]) for name, weight in bad.weights.items())


def test_every_stage_reports_the_norm_of_the_gradient(folder: Path) -> None:
    norms = [runs_of(folder, f"stage {stage}, exact", 0)[1].norms for stage in (0, 1, 2)]
    for stage_norms in norms:
        assert stage_norms == pytest.approx(runs_of(folder, "exact", 0)[1].norms, rel=1e-4)
