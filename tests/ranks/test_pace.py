"""A rank that is slow, for whatever reason, is named within three reports, and no rank that is not."""

import socket
from decimal import Decimal
from pathlib import Path

import pytest

from megaslm.slm.rule import KeepRatio, SelectionRule
from tests.forks import fork_two_ranks, statuses_of
from tests.messages import Says
from tests.ranks.pace_worker import Report, Training, read_reports, train_each

STEPS_PER_REPORT = 10
# Rows that are known beforehand differ in number between the ranks, at every step.
KNOWN = SelectionRule(KeepRatio(Decimal("0.6")), "reference")
SLOW = {
    "halts": Training(6 * STEPS_PER_REPORT, STEPS_PER_REPORT, faults=f"slow@rank1:step{3 * STEPS_PER_REPORT + 1}"),
    "loading": Training(3 * STEPS_PER_REPORT, STEPS_PER_REPORT, loading_seconds=0.3),
}


def _trained(trainings: list[Training], note: Path) -> list[list[Report]]:
    assert statuses_of(fork_two_ranks(lambda: train_each(trainings, note))) == [0, 0]
    return read_reports(note)


@pytest.fixture(scope="module")
def slow_reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Report]]:
    # The rank that is stopped half the time comes last: what stops it ends with the process.
    names = sorted(SLOW, reverse=True)
    names.sort(key=lambda name: name == "halts")
    note = tmp_path_factory.mktemp("pace") / "reports.json"
    return dict(zip(names, _trained([SLOW[name] for name in names], note), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("cause", "slow_from_step"), [("halts", 31), ("loading", 1)])
def test_a_slow_rank_is_named_within_three_reports_and_no_other(
    slow_reports: dict[str, list[Report]], cause: str, slow_from_step: int, says: Says
) -> None:
    _assert_only_rank_1_is_named(slow_reports[cause], cause, slow_from_step, says)


def test_a_rank_that_computes_slowly_is_named_and_no_other(tmp_path: Path, says: Says) -> None:
    training = Training(3 * STEPS_PER_REPORT, STEPS_PER_REPORT, slow_product=512)
    (reports,) = _trained([training], tmp_path / "reports.json")
    _assert_only_rank_1_is_named(reports, "compute", 1, says)


def _assert_only_rank_1_is_named(reports: list[Report], cause: str, slow_from_step: int, says: Says) -> None:
    (line,) = [line for report in reports for line in report.news]
    (named,) = [report for report in reports if report.news]
    assert named.step < slow_from_step + 3 * STEPS_PER_REPORT
    assert line.startswith("warning: rank 1 on ")
    assert named.slowest_rank == 1
    assert named.slowest_ratio >= 1.5
    assert line.count(f"{named.slowest_ratio:.1f}") >= 2
    # The other causes may or may not be near.
    told, _, causes = line.partition(" (")
    assert f"{cause} {named.slowest_ratio:.1f}×" in causes
    says.without_numbers(told, HOST=socket.gethostname())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_clean_steps_raise_no_alarm(tmp_path: Path) -> None:
    """Half of them with choices that are known beforehand, which cost the ranks unequally much."""
    trainings = [Training(1000, STEPS_PER_REPORT), Training(1000, STEPS_PER_REPORT, rule=KNOWN, micro_steps=2)]
    for reports in _trained(trainings, tmp_path / "reports.json"):
        assert len(reports) == 100
        assert [line for report in reports for line in report.news] == []
