"""What a run does about a loss spike: nothing, a warning, an end, or a roll-back behind the rows that were read."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megaslm.config.schema import RunConfig
from megaslm.stream.loader import MicroBatch, TrainingStream
from megaslm.stream.order import Extent
from megaslm.training.checkpoints.rollbacks import ROLL_BACKS
from megaslm.training.checkpoints.store import complete_checkpoints, step_folder
from megaslm.training.step_rows import rows_of_step
from tests.forked_cli import run_megaslm
from tests.forks import statuses_of
from tests.messages import Says, line_with
from tests.noted_tracker import NotedTracker
from tests.toy import SEQ_LEN, SHAPE, VOCAB_SIZE, make_dataset, run_config, write_config
from tests.training import changed, losses, run_training, start_training

STEPS = 24
ROWS_PER_STEP = 8
STEPS_BETWEEN_CHECKPOINTS = 4
BAD_STEP = 18
LAST_GOOD_CHECKPOINT = 16
FIRST_BAD_ROW = (BAD_STEP - 1) * ROWS_PER_STEP
BEHIND_BAD_ROWS = BAD_STEP * ROWS_PER_STEP


def same_rows(generator: np.random.Generator, count: int, seq_len: int, vocab_size: int) -> np.ndarray:
    """Rows that are soon learned."""
    return np.tile(np.arange(3, 4 + seq_len), (count, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spikes") / "tokens"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.toy.random_rows", same_rows)
        make_dataset(folder, {("train", "a"): [2 * STEPS * ROWS_PER_STEP]})
    return folder


Stream = Callable[[TrainingStream, int, tuple[Extent, ...]], Iterator[MicroBatch]]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes noise of the rows that are read in these places of the run's order, and kills who reads another one."""

    def spoil(first: int, behind: int, *, deadly: int | None = None) -> None:
        monkeypatch.setattr(TrainingStream, "micro_batches", spoiled(clean, range(first, behind), deadly))

    clean = TrainingStream.micro_batches
    return spoil


def spoiled(clean: Stream, bad: range, deadly: int | None) -> Stream:
    def micro_batches(stream: TrainingStream, rows_seen: int, extents: tuple[Extent, ...] = ()) -> Iterator[MicroBatch]:
        print(f"from row {rows_seen}", flush=True)
        noise = torch.Generator().manual_seed(0)
        for batch in clean(stream, rows_seen, extents):
            if rows_seen == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if rows_seen in bad:
                batch = replace(batch, tokens=torch.randint(3, VOCAB_SIZE, batch.tokens.shape, generator=noise))
            yield batch
            rows_seen += ROWS_PER_STEP

    return micro_batches


def config_of(run: Path, dataset: Path, on_spike: str, *, steps_between_checkpoints: int) -> RunConfig:
    step_tokens = ROWS_PER_STEP * SEQ_LEN
    return run_config(
        run,
        dataset,
        model={"from_scratch": {**SHAPE, "num_layers": 1}},
        train={"total_tokens": STEPS * step_tokens, "schedule": "constant"},
        checkpoint={"every_tokens": steps_between_checkpoints * step_tokens, "keep_last": STEPS},
        guard={"on_spike": on_spike, "spike_window_steps": 8},
        log={"every_steps": 1},
    )


@pytest.fixture
def configured(tmp_path: Path, dataset: Path) -> Callable[..., RunConfig]:
    def configured(on_spike: str, *, steps_between_checkpoints: int = STEPS_BETWEEN_CHECKPOINTS) -> RunConfig:
        run = tmp_path / "run"
        return config_of(run, dataset, on_spike, steps_between_checkpoints=steps_between_checkpoints)

    return configured


def steps_saved(config: RunConfig) -> list[int]:
    return [checkpoint.step for checkpoint in complete_checkpoints(Path(config.run_dir) / "checkpoints")]


Said = pytest.CaptureFixture[str]
FOUND = f"step {BAD_STEP}: the loss of "


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NotedTracker:
    """Gets the calls of the runs of `tracked`."""
    tracker = NotedTracker.in_folder(tmp_path / "tracker")
    monkeypatch.syspath_prepend(tracker.folder)
    return tracker


def tracked(config: RunConfig) -> RunConfig:
    return changed(config, log={"tracker": "trackio"})


def require_alerts(tracker: NotedTracker, *titles: str, attempts: int = 1) -> None:
    assert [alert["title"] for alert in tracker.alerts] == [f"run: {title}" for title in titles]
    assert all(FOUND in alert["text"] for alert in tracker.alerts)
    made = [call for call, _, _ in tracker.calls if call in ("init", "finish")]
    assert made == ["init", "finish"] * attempts


@pytest.mark.parametrize(("on_spike", "warnings"), [("warn", 1), ("off", 0)])
def test_a_run_continues_over_a_spike(
    on_spike: str,
    warnings: int,
    spoil: Callable[..., None],
    configured: Callable[..., RunConfig],
    tracker: NotedTracker,
    capfd: Said,
) -> None:
    spoil(FIRST_BAD_ROW, BEHIND_BAD_ROWS)
    config = tracked(configured(on_spike))
    run_training(config)
    require_alerts(tracker, *["loss spike"] * warnings)
    said = capfd.readouterr().out
    assert said.count(f"warning: {FOUND}") == said.count("standard deviation") == warnings
    assert said.count("from row") == 1
    assert len(losses(Path(config.run_dir))) == STEPS
    assert steps_saved(config)[-1] == STEPS


def test_a_run_stops_at_a_spike(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], tracker: NotedTracker, capfd: Said, says: Says
) -> None:
    spoil(FIRST_BAD_ROW, BEHIND_BAD_ROWS)
    config = tracked(configured("stop"))
    run_training(config, expect_status=1)
    require_alerts(tracker, "loss spike", "stopped")
    said = capfd.readouterr().err
    says.without_numbers(line_with(said, FOUND, "guard.on_spike = stop: "))
    assert len(losses(Path(config.run_dir))) == BAD_STEP
    assert steps_saved(config)[-1] == LAST_GOOD_CHECKPOINT


def test_a_roll_back_opens_the_run_of_the_tracker_once_more(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], tracker: NotedTracker
) -> None:
    spoil(FIRST_BAD_ROW, BEHIND_BAD_ROWS)
    run_training(tracked(configured("rollback")))
    require_alerts(tracker, "loss spike", attempts=2)


def test_without_a_checkpoint_from_before_there_is_nothing_to_go_back_to(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], capfd: Said, says: Says
) -> None:
    spoil(FIRST_BAD_ROW, BEHIND_BAD_ROWS)
    config = configured("rollback", steps_between_checkpoints=BAD_STEP)
    run_training(config, expect_status=1)
    said = capfd.readouterr().err
    says.without_numbers(line_with(said, FOUND, "guard.on_spike = rollback: "), "checkpoint.every_tokens")
    assert steps_saved(config) == []


def test_a_roll_back_waits_for_what_is_being_removed(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capfd: Said
) -> None:
    """As it is where a checkpoint is large: a file is removed, and the next one some time after."""

    remove = shutil.rmtree

    def remove_slowly(folder: Path, **options: Any) -> None:
        if folder == step_folder(folder.parent, LAST_GOOD_CHECKPOINT - STEPS_BETWEEN_CHECKPOINTS):
            for path in sorted(folder.iterdir()):
                path.unlink()
                time.sleep(0.2)
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_slowly)
    spoil(FIRST_BAD_ROW, BEHIND_BAD_ROWS)
    config = changed(configured("rollback"), checkpoint={"keep_last": 1})
    run_training(config)
    assert steps_saved(config) == [STEPS]
    said = capfd.readouterr().out
    assert said.count("warning: ") == said.count(f"warning: {FOUND}") == 1


def test_a_run_gives_up_that_comes_back_to_one_checkpoint_again_and_again(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], capfd: Said, says: Says
) -> None:
    spoil(FIRST_BAD_ROW, 2 * STEPS * ROWS_PER_STEP)
    config = configured("rollback")
    run_training(config, expect_status=1)
    said = capfd.readouterr()
    # From the first of the bad rows on each attempt meets the next of them at its first step.
    for behind in range(3):
        assert f"from row {BEHIND_BAD_ROWS + behind * ROWS_PER_STEP}\n" in said.out
    assert said.out.count("from row") == 4
    says.without_numbers(line_with(said.err, f"step {LAST_GOOD_CHECKPOINT} 3 ", "guard.on_spike = warn"))
    assert steps_saved(config)[-1] == LAST_GOOD_CHECKPOINT


@pytest.mark.parametrize("bad_steps", [1, 2])
def test_a_run_that_is_killed_after_a_roll_back_still_continues_behind_the_rows(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], capfd: Said, bad_steps: int, says: Says
) -> None:
    """Before it has saved anything since: its newest checkpoint knows nothing of the roll-back, nor of a second one."""
    behind = FIRST_BAD_ROW + bad_steps * ROWS_PER_STEP
    spoil(FIRST_BAD_ROW, behind, deadly=behind + ROWS_PER_STEP)
    config = configured("rollback")
    assert statuses_of(start_training(config)) == [-signal.SIGKILL]
    assert f"from step {BAD_STEP} to step {LAST_GOOD_CHECKPOINT}" in capfd.readouterr().out
    assert steps_saved(config)[-1] == LAST_GOOD_CHECKPOINT
    require_told_rows(config, behind)
    spoil(FIRST_BAD_ROW, behind)
    run_training(config, resume=True)
    said = capfd.readouterr().out
    says(
        line_with(
            said,
            f"step {LAST_GOOD_CHECKPOINT}, ",
            step_folder(Path(config.run_dir) / "checkpoints", LAST_GOOD_CHECKPOINT),
        )
    )
    assert f"from row {behind}\n" in said
    assert "standard deviation" not in said
    assert len(losses(Path(config.run_dir))) == STEPS
    require_told_rows(config, behind)


def require_told_rows(config: RunConfig, behind: int) -> None:
    """`inspect --order` tells the rows of the steps up to the last good checkpoint, and those after the roll-back."""
    run = Path(config.run_dir)
    undisturbed = write_config(run.with_name("undisturbed.yaml"), config)
    skipped_steps = behind // ROWS_PER_STEP - LAST_GOOD_CHECKPOINT
    for step in (1, LAST_GOOD_CHECKPOINT, LAST_GOOD_CHECKPOINT + 1, LAST_GOOD_CHECKPOINT + 4):
        skipped = skipped_steps if step > LAST_GOOD_CHECKPOINT else 0
        assert rows_of_step(run, step).rows == rows_of_step(undisturbed, step + skipped).rows


def test_rows_of_a_step_are_not_told_where_the_roll_backs_are_lost(
    spoil: Callable[..., None], configured: Callable[..., RunConfig], tmp_path: Path, says: Says
) -> None:
    spoil(FIRST_BAD_ROW, BEHIND_BAD_ROWS)
    run_training(configured("rollback"))
    (tmp_path / "run" / ROLL_BACKS).unlink()
    said = run_megaslm("inspect", tmp_path / "run", "--order", "20", expect_status=2)
    says(said, ROLL_BACKS, step_folder(tmp_path / "run" / "checkpoints", STEPS))
