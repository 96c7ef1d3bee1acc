"""Steps become records: those that were made, and those that were skipped."""

import json
from pathlib import Path

import pytest
import torch

from megaslm.config.plan import plan_batches
from megaslm.engine.distributed import World
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import selection_sums, sums_of_unused
from megaslm.stream.mixture import Mixture, MixtureStream
from megaslm.training.reporting import Reporter
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import StepResult
from megaslm.training.training_data import DomainCounts
from tests.messages import Says
from tests.toy import SEQ_LEN, run_config

ROWS = 8
TARGETS = Targets(torch.ones(ROWS, SEQ_LEN, dtype=torch.bool), torch.arange(ROWS * SEQ_LEN).view(ROWS, SEQ_LEN))
DOMAIN = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
SELECTED = torch.rand(ROWS, SEQ_LEN, generator=torch.Generator().manual_seed(0)) < 0.6
NO_NUMBER = torch.tensor(torch.nan)


def made(step: int, *, not_finite: int = 0) -> StepResult:
    """A step of loss 2, and so many losses among the targets that were not selected are NaN."""
    losses = torch.full((ROWS, SEQ_LEN), 2.0)
    places = (~SELECTED).nonzero()[:not_finite]
    losses[places[:, 0], places[:, 1]] = torch.nan
    total = losses.where(SELECTED, 0.0).sum()
    sums = selection_sums(total, losses, TARGETS.valid, SELECTED, TARGETS, DOMAIN, 2)
    return StepResult(step, 1e-3, sums, NO_NUMBER, torch.tensor(0.5))


def skipped(step: int, reason: str) -> StepResult:
    return StepResult(step, 1e-3, sums_of_unused(TARGETS, DOMAIN, 2), NO_NUMBER, NO_NUMBER, reason)


def counts() -> DomainCounts:
    streams = tuple(MixtureStream(Path(name), None, 100, number, None) for number, name in enumerate("ab"))
    return DomainCounts(Mixture(streams, ("a", "b")), SEQ_LEN, rows_read={})


def reporter_in(
    folder: Path, counts: DomainCounts, *, rank: int = 0, last_step: int = 0, skipped_steps: int = 0
) -> Reporter:
    run = RunFolder(folder / "run")
    run.path.mkdir(exist_ok=True)
    plan = plan_batches(run_config(run.path, folder), 1)
    world = World(rank, 2, torch.device("cpu"))
    return Reporter(
        run,
        plan,
        world,
        domains=("a", "b"),
        counts=counts,
        last_step=last_step,
        skipped_steps=skipped_steps,
        validation_is_due=False,
    )


def lines_in(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_skipped_step_is_said_at_once_and_recorded_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    rows = counts()
    reporter = reporter_in(tmp_path, rows)
    reporter.add(made(1))
    reporter.add(skipped(2, "2 losses are NaN, in the rows a:5"))
    (told,) = (line for line in capsys.readouterr().out.splitlines() if "2/6" in line)
    says(told, "2 losses are NaN, in the rows a:5")
    assert [(line["kind"], line["step"]) for line in lines_in(tmp_path)] == [("step", 1), ("skipped", 2)]
    reporter.add(made(3))
    assert [record.step for record in reporter.flush()] == [1, 3]
    assert reporter.flush() == []
    lines = lines_in(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 1), ("skipped", 2), ("step", 3)]
    assert (lines[1]["reason"], lines[1]["tokens"]) == ("2 losses are NaN, in the rows a:5", 2 * ROWS * SEQ_LEN)
    # Its rows were read, but nothing was trained on.
    assert rows.rows_read == {"a": 15, "b": 9}
    assert reporter.selected_tokens == 2 * int(SELECTED.sum())
    assert lines[2]["loss"] == lines[2]["all_loss"] == 2.0


@pytest.mark.parametrize("rank", [0, 1])
def test_skipped_steps_are_counted_on_by_a_resumed_run(tmp_path: Path, rank: int) -> None:
    """By every rank, and whatever has become of the log."""
    reporter = reporter_in(tmp_path, counts(), rank=rank, last_step=7, skipped_steps=5)
    reporter.add(skipped(8, "no reason"))
    reporter.add(made(9))
    reporter.add(skipped(10, "no reason"))
    assert [record.step for record in reporter.flush()] == [9]
    assert reporter.skipped_steps == 7
    if rank == 0:
        assert [line["skipped_steps"] for line in lines_in(tmp_path) if line["kind"] == "skipped"] == [6, 7]


def test_losses_that_a_step_does_not_depend_on_are_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    reporter = reporter_in(tmp_path, counts())
    for result in (made(1), made(2, not_finite=3), made(3, not_finite=1)):
        reporter.add(result)
    reporter.flush()
    said = capsys.readouterr().out
    (warning,) = (line for line in said.splitlines() if line.startswith("warning:"))
    says(warning, "step 2", "3", "128")
    assert [line["all_loss"] for line in lines_in(tmp_path)] == [2.0, None, None]
    assert [line["loss"] for line in lines_in(tmp_path)] == [2.0] * 3


def test_all_ranks_get_the_records_and_the_first_alone_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = reporter_in(tmp_path, counts(), rank=1)
    reporter.add(made(1))
    reporter.add(skipped(2, "no reason"))
    assert [(record.step, record.loss) for record in reporter.flush()] == [(1, 2.0)]
    reporter.close()
    assert not list((tmp_path / "run").iterdir())
    assert capsys.readouterr().out == ""
