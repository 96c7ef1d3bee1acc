"""Steps become records: those that were made, and those that were skipped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megaslm.config.plan import plan_batches
from megaslm.engine.distributed import World
from megaslm.model.forward_flops import ForwardFlops
from megaslm.observe.records import SaveRecord
from megaslm.slm.choice import HeadOutput, no_threshold
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import selection_sums, summarise, sums_of_unused
from megaslm.stream.mixture import Mixture, MixtureStream
from megaslm.training.meters import RunMeters
from megaslm.training.reporting import Reporter
from megaslm.training.run import description_of
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import StepResult
from megaslm.training.training_data import DomainCounts
from tests.device_reads import host_reads
from tests.messages import Says
from tests.toy import SEQ_LEN, SHAPE, run_config

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
    output = HeadOutput(losses.where(SELECTED, 0.0).sum(), losses, SELECTED, no_threshold(losses.device))
    sums = selection_sums(output, TARGETS.valid, TARGETS, DOMAIN, 2)
    return StepResult(step, 1e-3, sums, NO_NUMBER, torch.tensor(0.5))


def skipped(step: int, reason: str) -> StepResult:
    return StepResult(step, 1e-3, sums_of_unused(TARGETS, DOMAIN, 2), NO_NUMBER, NO_NUMBER, reason)


def counts() -> DomainCounts:
    streams = tuple(MixtureStream(Path(name), None, 100, number, None) for number, name in enumerate("ab"))
    return DomainCounts(Mixture(streams, ("a", "b")), SEQ_LEN, rows_read={})


def reporter_in(
    folder: Path,
    counts: DomainCounts,
    *,
    rank: int = 0,
    last_step: int = 0,
    skipped_steps: int = 0,
    selected_tokens: int = 0,
) -> Reporter:
    run = RunFolder(folder / "run")
    run.path.mkdir(exist_ok=True)
    config = run_config(run.path, folder)
    plan = plan_batches(config, 1)
    world = World(rank, 2, torch.device("cpu"))
    return Reporter(
        run,
        plan,
        world,
        domains=("a", "b"),
        counts=counts,
        meters=RunMeters(config, plan, world, ForwardFlops(2e6, 1e3)),
        description=description_of(config),
        log=config.log,
        last_step=last_step,
        skipped_steps=skipped_steps,
        selected_tokens=selected_tokens,
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
    assert [(line["kind"], line["step"]) for line in lines_in(tmp_path)] == [("step", 1), ("skipped", 2), ("report", 2)]
    reporter.add(made(3))
    assert [record.step for record in reporter.flush()] == [1, 3]
    assert reporter.flush() == []
    lines = [line for line in lines_in(tmp_path) if line["kind"] != "report"]
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


def test_the_device_is_read_when_steps_are_written_and_not_before(tmp_path: Path) -> None:
    reporter = reporter_in(tmp_path, counts())
    steps = [made(1), made(2)]
    with host_reads() as reads:
        for step in steps:
            reporter.add(step)
        assert reads == []
        reporter.flush()
    assert [place.partition(":")[0] for place in reads] == ["megaslm.training.reporting"]


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
    steps = [line for line in lines_in(tmp_path) if line["kind"] == "step"]
    assert [line["all_loss"] for line in steps] == [2.0, None, None]
    assert [line["loss"] for line in steps] == [2.0] * 3


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


def test_a_report_sums_the_steps_that_it_reads(tmp_path: Path) -> None:
    reporter = reporter_in(tmp_path, counts(), selected_tokens=100)
    for number in (1, 2):
        reporter.add(made(number))
    reporter.note(SaveRecord(1, 0, 0.5, 2.0))
    reporter.flush()
    lines = lines_in(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 1), ("save", 1), ("step", 2), ("report", 2)]
    report = lines[-1]
    band = SELECTED.view(ROWS, 8, SEQ_LEN // 8).double().mean((0, 2))
    assert report["position_ratio"] == pytest.approx(band.tolist(), abs=1e-6)
    assert (report["steps"], report["selected_tokens"]) == (2, 100 + 2 * int(SELECTED.sum()))
    assert (report["mfu"], report["device_memory_bytes"], report["keep_ratio"]) == (None, None, None)
    assert report["excess_counts"] == []


def test_the_time_in_steps_continues_from_the_report_before(tmp_path: Path) -> None:
    first = reporter_in(tmp_path, counts())
    first.add(made(1))
    first.flush()
    metrics = tmp_path / "run" / "metrics.jsonl"
    report = json.loads(metrics.read_text().splitlines()[-1])
    changed = {**report, "seconds_in_steps": 40.0, "begun_at": report["begun_at"] - 100.0}
    metrics.write_text(metrics.read_text().replace(json.dumps(report), json.dumps(changed)))
    resumed = reporter_in(tmp_path, counts(), last_step=1)
    resumed.add(made(2))
    resumed.flush()
    after = lines_in(tmp_path)[-1]
    assert (after["begun_at"], after["seconds_in_steps"]) == (changed["begun_at"], 40.0)
    assert 0.0 < float(str(after["effective_time_ratio"])) < 0.4


def test_mfu_counts_what_tokens_attend_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two devices of which a name with a known peak is given; the rows of `made` are documents of SEQ_LEN tokens."""
    monkeypatch.setattr("megaslm.training.meters.device_name", lambda device: "NVIDIA H100 80GB HBM3")
    config = run_config(tmp_path, tmp_path, model={"from_scratch": SHAPE, "precision": "bf16"})
    world = World(0, 2, torch.device("cpu"))
    meters = RunMeters(config, plan_batches(config, 2), world, ForwardFlops(weights=2e6, attended_token=1e3))
    summary = summarise(made(1).sums.tolist())
    halved = replace(summary, attended=summary.attended / 2)
    report = meters.report(1, [halved], selected_tokens=0, tokens_per_second=5e6, second_pass_ratio=0.0)
    assert report.mfu == pytest.approx(3 * (2e6 + 1e3 * SEQ_LEN / 2) * 5e6 / (2 * 989e12))
    assert report.mfu_of_documents == pytest.approx(3 * (2e6 + 1e3 * SEQ_LEN / 4) * 5e6 / (2 * 989e12))
