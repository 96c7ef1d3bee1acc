"""Which checkpoints a run's settings keep, and which of these settings contradict one another."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megaslm.config.retention import retention_of, retention_warnings
from tests.messages import Says
from tests.toy import SEQ_LEN, run_config

STEP_TOKENS = 8 * SEQ_LEN
STEPS = 60


def warnings(**checkpoint: Any) -> list[str]:
    return list(retention_warnings(run_config(Path("run"), Path("tokens"), checkpoint=checkpoint), STEPS))


@pytest.mark.parametrize(
    ("every_tokens", "keep_every_tokens", "keep_every_steps"),
    [
        (4 * STEP_TOKENS, 12 * STEP_TOKENS, 12),
        # Rounded to steps by themselves, 4 and 11 would meet at step 44 for the first time.
        (4 * STEP_TOKENS + STEP_TOKENS // 2, 11 * STEP_TOKENS, 12),
        (4 * STEP_TOKENS, STEP_TOKENS, 4),
        (1, 3 * STEP_TOKENS, 3),
        (4 * STEP_TOKENS, None, None),
        (None, 12 * STEP_TOKENS, None),
    ],
)
def test_the_kept_interval_is_a_multiple_of_that_between_checkpoints(
    every_tokens: int | None, keep_every_tokens: int | None, keep_every_steps: int | None
) -> None:
    checkpoint = {"every_tokens": every_tokens, "keep_every_tokens": keep_every_tokens, "keep_last": 3}
    retention = retention_of(run_config(Path("run"), Path("tokens"), checkpoint=checkpoint))
    assert (retention.keep_last, retention.keep_every_steps) == (3, keep_every_steps)


def test_an_interval_in_steps_is_taken_as_it_is() -> None:
    checkpoint = {"every_tokens": 4 * STEP_TOKENS, "keep_every_steps": 6}
    assert retention_of(run_config(Path("run"), Path("tokens"), checkpoint=checkpoint)).keep_every_steps == 6


def test_settings_that_fit_need_no_warning() -> None:
    assert warnings() == []
    assert warnings(every_tokens=4 * STEP_TOKENS) == []
    assert warnings(every_tokens=STEPS * STEP_TOKENS) == []
    assert warnings(every_tokens=4 * STEP_TOKENS, keep_every_tokens=20 * STEP_TOKENS) == []
    assert warnings(every_tokens=4 * STEP_TOKENS, keep_every_steps=20) == []


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ({"every_tokens": (STEPS + 1) * STEP_TOKENS}, f"checkpoint.every_tokens = {(STEPS + 1) * STEP_TOKENS}"),
        ({"keep_every_tokens": 999}, "checkpoint.keep_every_tokens = 999"),
        ({"keep_every_steps": 9}, "checkpoint.keep_every_steps = 9"),
        ({"every_tokens": 4 * STEP_TOKENS, "keep_every_steps": 10}, "20"),
        ({"every_tokens": 4 * STEP_TOKENS, "keep_every_steps": 17}, "68"),
        ({"every_tokens": 4 * STEP_TOKENS, "keep_every_tokens": 64 * STEP_TOKENS}, "64"),
    ],
    ids=[
        "longer than the run",
        "tokens without checkpoints",
        "steps without checkpoints",
        "rarer",
        "never",
        "too rare",
    ],
)
def test_settings_without_effect_are_told(checkpoint: dict[str, Any], named: str, says: Says) -> None:
    (warning,) = warnings(**checkpoint)
    says(warning, named)


def test_two_intervals_are_refused(says: Says) -> None:
    with pytest.raises(ValidationError) as refused:
        run_config(Path("run"), Path("tokens"), checkpoint={"keep_every_tokens": 5, "keep_every_steps": 6})
    (problem,) = refused.value.errors()
    says(problem["msg"], "keep_every_tokens = 5", "keep_every_steps = 6")
