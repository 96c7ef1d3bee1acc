"""Parts scored in ranges of rows: ranks share one part, and what comes out is what one rank writes in one go."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.config.cluster import Share
from megaslm.dataset.score_summary import ScoreSummary, read_scores
from megaslm.engine.distributed import join_world
from megaslm.health import shared_folders
from megaslm.inspect.verify import verify
from megaslm.jobs import ledger
from megaslm.jobs.ledger import Drawn
from megaslm.model.reference_model import ReferenceModel
from megaslm.observe.console import JobConsole
from megaslm.scoring import job, work
from megaslm.scoring.job import finish, score, score_share
from megaslm.scoring.reports import joined, scored_by
from megaslm.scoring.request import ScoreRequest
from tests.forks import fork, fork_ranks, statuses_of, wait_until
from tests.messages import Says, line_with
from tests.scoring import NOTES, failing, make_reference, notes, rows_of, run_job, task_of
from tests.toy import SEQ_LEN, make_dataset

PARTS = {("train", "a"): [61, 8], ("train", "b"): [40]}
BATCH_ROWS = 4
CUT = 12 * SEQ_LEN
"""Targets of a range, in place of as many as take a moment."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, a dataset, and what one rank makes of it where no part is cut."""
    folder = tmp_path_factory.mktemp("ranges")
    make_reference(folder / "model")
    make_dataset(folder / "tokens", PARTS)  # type: ignore[arg-type]
    run_job(1, task_of(folder / "model", folder / "tokens", folder / "scored", entropy=True))
    return folder


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_LEAST_TARGETS", CUT)


def summary_of(scored: Path) -> ScoreSummary:
    summary = read_scores(scored)
    assert summary is not None
    return summary


def range_notes(scored: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (scored / NOTES / "ranges").glob("task-*.json")}


def require_same(scored: Path, folder: Path) -> None:
    assert rows_of(scored) == rows_of(folder / "scored")
    found, expected = summary_of(scored), summary_of(folder / "scored")
    assert [part.statistics for part in found.parts] == [part.statistics for part in expected.parts]
    for part in found.parts:
        assert sum(by.targets for by in part.by) == part.statistics.targets
    assert not verify(scored).problems
    assert not (scored / ".score").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_same_bytes_come_out(folder: Path, cut: None, tmp_path: Path, ranks: int) -> None:
    run_job(ranks, task_of(folder / "model", folder / "tokens", tmp_path / "scored", entropy=True))
    require_same(tmp_path / "scored", folder)


def test_ranks_share_one_part(folder: Path, cut: None, tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [200]})
    task = task_of(folder / "model", tmp_path / "tokens", tmp_path / "scored")

    def run() -> None:
        # So that no rank is done before the other begins.
        _wait_before_each_batch(0.01)
        score(task)

    assert statuses_of(fork_ranks(2, run)) == [0, 0]
    (part,) = summary_of(tmp_path / "scored").parts
    assert [by.rank for by in part.by] == [0, 1]
    assert min(by.targets for by in part.by) > part.statistics.targets / 4


def test_killed_at_random_points_it_resumes_within_a_part(folder: Path, cut: None, tmp_path: Path) -> None:
    scored, points = tmp_path / "scored", random.Random(3)
    task = task_of(folder / "model", folder / "tokens", scored, entropy=True)

    def run() -> None:
        _wait_before_each_batch(0.02)
        score(task)

    done: dict[str, int] = {}
    for _ in range(6):
        ranks = fork_ranks(points.choice((1, 2)), run)
        before = len(range_notes(scored))
        wait_until(lambda before=before: len(range_notes(scored)) > before or bool(notes(scored)))
        time.sleep(points.uniform(0, 0.1))
        for rank in ranks if points.random() < 0.5 else ranks[:1]:
            os.kill(rank, signal.SIGKILL)
        time.sleep(0.02)
        os.killpg(ranks[0], signal.SIGKILL)
        statuses_of(ranks)
        if not (scored / ".score").exists():
            break
        assert done.items() <= range_notes(scored).items(), "a range was scored again"
        done = range_notes(scored)
    run_job(2, task)
    require_same(scored, folder)


def test_a_range_that_kills_its_ranks_is_left_and_named(
    folder: Path, cut: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    task = task_of(folder / "model", folder / "tokens", tmp_path / "scored", entropy=True)

    def run() -> None:
        scored = work.ScoreProcess._score_range

        def dying(self: Any, each: Any) -> Any:
            if each.item.domain == "a" and each.rows.start == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            return scored(self, each)

        work.ScoreProcess._score_range = dying  # type: ignore[method-assign]
        _wait_before_each_batch(0.02)
        score(task)

    assert sorted(statuses_of(fork_ranks(4, run))) == [-signal.SIGKILL] * 3 + [1]
    says(line_with(capfd.readouterr().err, "3 times", "train/a/part-00000 (rows 12 to 23)"))
    run_job(1, task)
    require_same(tmp_path / "scored", folder)


def test_shares_of_one_part_are_joined_at_the_end(folder: Path, cut: None, tmp_path: Path) -> None:
    """Whichever share scores the last range, or `finish` where that one was killed before it could join."""
    task = task_of(folder / "model", folder / "tokens", tmp_path / "scored", entropy=True)

    def without_joining(share: Share) -> None:
        draw = work.ScoreProcess._draw_part
        work.ScoreProcess._draw_part = (  # type: ignore[method-assign]
            lambda self, item: Drawn.BUSY if self._work.ranges(item) else draw(self, item)
        )
        score_share(task, share)

    assert statuses_of([fork(lambda: score_share(task, Share(1, 2)))]) == [0]
    assert statuses_of([fork(lambda: without_joining(Share(2, 2)))]) == [0]
    assert len(notes(tmp_path / "scored")) < 3
    assert statuses_of([fork(lambda: finish(task) and None)]) == [0]
    require_same(tmp_path / "scored", folder)


def test_another_dataset_or_batch_does_not_take_the_ranges_of_the_last(
    folder: Path, cut: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "tokens", scored, entropy=True)

    _kill_one_that_has(range_notes, task)
    assert not notes(scored)
    other = task_of(folder / "model", folder / "tokens", scored, entropy=True, batch_rows=5)
    said = failing(lambda: score(other), 2, capfd)
    assert "reference.batch_rows = 4 there, 5 here" in said
    # The same rows in number, but others.
    make_dataset(tmp_path / "tokens", PARTS, seed=7)  # type: ignore[arg-type]
    run_job(1, task_of(folder / "model", tmp_path / "tokens", scored, entropy=True))
    run_job(1, task_of(folder / "model", tmp_path / "tokens", tmp_path / "again", entropy=True))
    assert rows_of(scored) == rows_of(tmp_path / "again")


def test_where_locks_do_not_hold_between_hosts_each_rank_has_its_share(
    folder: Path, cut: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    task = task_of(folder / "model", folder / "tokens", tmp_path / "scored", entropy=True)

    def run() -> None:
        job.locks_hold = lambda path, world: False  # type: ignore[attr-defined]
        score(task, JobConsole("score"))

    assert statuses_of(fork_ranks(3, run)) == [0, 0, 0]
    says(line_with(capfd.readouterr().out, " locks "))
    require_same(tmp_path / "scored", folder)


def test_shares_end_where_locks_do_not_hold(folder: Path, cut: None, tmp_path: Path) -> None:
    task = task_of(folder / "model", folder / "tokens", tmp_path / "scored", entropy=True)

    def run(share: Share) -> None:
        job.locks_hold = lambda path, world: False  # type: ignore[attr-defined]
        score_share(task, share)

    for number in (1, 2):
        assert statuses_of(fork_ranks(2, lambda number=number: run(Share(number, 2)))) == [0, 0]  # type: ignore[misc]
    assert statuses_of([fork(lambda: finish(task) and None)]) == [0]
    require_same(tmp_path / "scored", folder)


def test_no_job_begins_while_ranks_of_the_last_are_at_work(
    folder: Path,
    cut: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    says: Says,
) -> None:
    """Their first rank has died, and with it the claim."""
    monkeypatch.setattr(ledger, "_KILLED_SECONDS", 0.2)
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "tokens", scored, entropy=True)

    def run() -> None:
        _wait_before_each_batch(0.05)
        score(task)

    ranks = fork_ranks(2, run)
    wait_until(lambda: bool(range_notes(scored)))
    os.kill(ranks[0], signal.SIGKILL)
    statuses_of(ranks[:1])
    other = task_of(folder / "model", folder / "tokens", scored, entropy=True, precision="bf16")
    says(failing(lambda: score(other), 2, capfd), f"{scored}: ")
    assert statuses_of(ranks[1:]) == [0]
    require_same(scored, folder)


def test_one_who_gets_a_lock_that_the_first_rank_holds_finds_out(tmp_path: Path) -> None:
    def look(hosts_have_their_own: bool) -> None:
        world = join_world()
        folder = tmp_path / (f"of-{world.rank}" if hosts_have_their_own else "shared")
        folder.mkdir(exist_ok=True)
        holds = shared_folders.locks_hold(folder, world)
        (tmp_path / f"said-{hosts_have_their_own}-{world.rank}").write_text(str(holds))

    for own in (False, True):
        assert statuses_of(fork_ranks(2, lambda own=own: look(own))) == [0, 0]  # type: ignore[misc]
        assert {(tmp_path / f"said-{own}-{rank}").read_text() for rank in range(2)} == {str(not own)}
    # The first rank takes the file away that it has locked.
    assert not [*tmp_path.glob("shared/.locked*"), *tmp_path.glob("of-0/.locked*")]


def test_a_dataset_of_an_earlier_build_grows(folder: Path, cut: None, tmp_path: Path) -> None:
    """It says of each part that one process scored it."""
    make_dataset(tmp_path / "small", {("train", "a"): [61]})
    scored = tmp_path / "scored"
    run_job(1, task_of(folder / "model", tmp_path / "small", scored, entropy=True))
    summary = summary_of(scored).model_dump(mode="json")
    for part in summary["parts"]:
        (by,) = part["by"]
        del by["targets"]
        part["by"] = by
    (scored / "scores.json").write_text(json.dumps(summary))
    assert summary_of(scored).parts[0].by[0].targets == summary_of(scored).parts[0].statistics.targets
    make_dataset(tmp_path / "grown", {("train", "a"): [61, 8]})
    run_job(2, task_of(folder / "model", tmp_path / "grown", scored, entropy=True))
    assert [part.rows for part in summary_of(scored).parts] == [61, 8]
    assert not verify(scored).problems


def test_what_an_earlier_build_has_begun_is_resumed(folder: Path, tmp_path: Path) -> None:
    """Its notes say of each part that one process scored it."""
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "tokens", scored, entropy=True)

    _kill_one_that_has(notes, task)
    done = notes(scored)
    for name in done:
        noted = json.loads((scored / NOTES / name).read_text())
        (noted["by"],) = noted["by"]
        del noted["by"]["targets"]
        (scored / NOTES / name).write_text(json.dumps(noted))
    run_job(1, task)
    require_same(scored, folder)


def test_a_process_is_named_once_where_it_scored_one_range_after_the_other() -> None:
    first = scored_by(0, torch.device("cpu"), 10, 2.0, 0.5)
    second = first.model_copy(update={"started": first.started + timedelta(seconds=2.1), "start_seconds": 0.1})
    later = first.model_copy(update={"started": first.started + timedelta(days=3), "start_seconds": 0.1})
    other = first.model_copy(update={"rank": 1})
    # Two jobs of an array on one host.
    beside = first.model_copy(update={"rank": 2})
    also = beside.model_copy(update={"started": first.started + timedelta(seconds=0.2)})
    found = joined([later, second, other, first, beside, also])
    assert [(by.rank, by.targets, round(by.rank_seconds, 3)) for by in found] == [
        (0, 20, 4.1),
        (0, 10, 2.0),
        (1, 10, 2.0),
        (2, 10, 2.0),
        (2, 10, 2.0),
    ]
    assert found[0].start_seconds == first.start_seconds


def _kill_one_that_has(done: Callable[[Path], dict[str, int]], task: ScoreRequest) -> None:
    """Begins a job on one rank, and kills it once it has noted something."""

    def run() -> None:
        _wait_before_each_batch(0.02)
        score(task)

    ranks = fork_ranks(1, run)
    wait_until(lambda: bool(done(Path(task.output))))
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)


def _wait_before_each_batch(seconds: float) -> None:
    measure = ReferenceModel.measure

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return measure(*arguments)

    ReferenceModel.measure = slow  # type: ignore[method-assign]
