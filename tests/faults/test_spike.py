"""A loss spike from bad rows: with `rollback` the run goes back to its last checkpoint and past what it read since."""

from pathlib import Path

import numpy as np
import pytest

from tests.events import points_in
from tests.faults.figures import Figures
from tests.faults.runs import ROWS_PER_STEP, Material, records, run_ranks, steps_made, tokens_of
from tests.toy import make_dataset

STEPS = 60
STEPS_BETWEEN_CHECKPOINTS = 4
BAD_ROW = -1


def counting_rows(generator: np.random.Generator, count: int, seq_len: int, vocab_size: int) -> np.ndarray:
    """Rows that count upwards, which is soon learned; but for the last one, which is noise."""
    starts = generator.integers(0, vocab_size - 3, (count, 1))
    rows = (starts + np.arange(seq_len + 1)) % (vocab_size - 3) + 3
    rows[BAD_ROW] = generator.integers(3, vocab_size, seq_len + 1)
    return rows


@pytest.mark.slow
def test_a_run_goes_back_and_past_the_rows_of_a_spike(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.toy.random_rows", counting_rows)
    tokens = tmp_path / "tokens"
    make_dataset(tokens, {("train", "a"): [ROWS_PER_STEP * STEPS]})
    config = Material(tokens, tokens).config(
        tmp_path / "run",
        steps=STEPS,
        train={"objective": "clm"},
        validation={"sets": {}},
        checkpoint={"every_tokens": tokens_of(STEPS_BETWEEN_CHECKPOINTS)},
        guard={"on_spike": "rollback", "spike_window_steps": 8},
    )
    capfd.readouterr()
    assert run_ranks(config) == [0, 0]
    said = capfd.readouterr().out
    assert said.count("standard deviation") == 1, said
    made, losses = steps_made(said), [record["loss"] for record in records(config)]
    assert [record["step"] for record in records(config)] == list(range(1, STEPS + 1))
    steps_to_return = len(made) - STEPS
    assert 0 < steps_to_return <= STEPS_BETWEEN_CHECKPOINTS + 1
    shown = points_in(tmp_path / "run")["loss/selected"]
    assert [step for step, _ in shown] == list(range(1, STEPS + 1))
    # The row is not met again: what the run keeps has no spike in it.
    assert max(losses[STEPS // 2 :]) < min(losses[:5])
    figures.record("spike", steps_to_return=steps_to_return, steps_between_checkpoints=STEPS_BETWEEN_CHECKPOINTS)
