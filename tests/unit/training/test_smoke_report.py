"""What a smoke test tells: its numbers, and what the run may fail of all the same."""

from dataclasses import replace

import pytest

from megaslm.training.smoke_report import PeakMemory, SmokeResult, report
from tests.messages import Says

GIB = 1 << 30
RESULT = SmokeResult(
    run_dir="runs/slm",
    steps=5,
    ranks=8,
    total_steps=14_305,
    validations=16,
    checkpoints=15,
    checkpoints_kept=3,
    losses=(2.411, 2.405, 2.402, 2.4, 2.3987),
    uniform_loss=10.3735,
    skipped_steps=0,
    validation_losses={"corpus/web": 2.4021, "corpus/all": 2.5},
    first_step_seconds=21.7,
    step_seconds=9.31,
    validation_seconds=38.2,
    tokens_per_second=112_629.4,
    peak_memory=PeakMemory(61 * GIB, 80 * GIB, 3),
    checkpoint_bytes=86_900_000_000,
    disk_free_bytes=2_100_000_000_000,
    run_seconds=133_790.8,
)


def test_a_run_that_will_work(says: Says) -> None:
    lines = list(report(RESULT))
    says("\n".join(lines), "2.4110 → 2.3987", "112,629 tokens/s", "260.7 GB", "37 h 10 min", "rank 3")
    assert not [line for line in lines if line.startswith("warning")]


@pytest.mark.parametrize(("first", "told"), [(10.3, "near chance"), (12.0, "worse than chance"), (9.5, "")])
def test_where_the_model_starts_is_said_if_it_knows_nothing(first: float, told: str, says: Says) -> None:
    lines = list(report(replace(RESULT, losses=(first, 9.0))))
    starts = [line for line in lines if line.startswith("smoke test · start")]
    assert bool(starts) == bool(told)
    for line in starts:
        says(line, told)


def test_a_small_run_on_a_cpu(says: Says) -> None:
    small = replace(
        RESULT,
        steps=1,
        ranks=1,
        total_steps=1,
        validations=0,
        checkpoints=1,
        checkpoints_kept=1,
        validation_losses={},
        validation_seconds=0.0,
        peak_memory=PeakMemory(GIB // 2, None, 0),
    )
    says("\n".join(report(small)), "0.50 GiB resident", "1 step,", "1 checkpoint at once")


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (replace(RESULT, skipped_steps=2), "2 of 5 steps"),
        (replace(RESULT, peak_memory=PeakMemory(77 * GIB, 80 * GIB, 0)), "train.micro_batch_rows"),
        (replace(RESULT, disk_free_bytes=200_000_000_000), "checkpoint.keep_last"),
    ],
    ids=["skipped", "memory", "disk"],
)
def test_what_a_run_may_fail_of_is_warned_of(result: SmokeResult, named: str, says: Says) -> None:
    *_, warning, verdict = report(result)
    says(warning, "warning: ", named)
    assert "1 warning" in verdict


def test_all_warnings_are_counted() -> None:
    full = PeakMemory(79 * GIB, 80 * GIB, 0)
    *_, verdict = report(replace(RESULT, skipped_steps=1, peak_memory=full, disk_free_bytes=0))
    assert "3 warnings" in verdict
