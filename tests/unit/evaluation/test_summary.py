"""Results of a task from its answers: accuracies with intervals also where all items agree."""

import pytest

from megaslm.config.task import Task
from megaslm.evaluation.records import Answered, TaskResult
from megaslm.evaluation.summary import of_answers, of_losses
from megaslm.tasks.losses import MeasuredItem

TASK = Task.model_validate({"files": ["a"], "format": "jsonl", "question": "{q}", "answer": "{a}"})
HASHES = {"task_sha256": "t", "data_sha256": "d"}


def result_of(*verdicts: list[bool]) -> TaskResult:
    """Of items with the verdicts of their samples."""
    answers = [
        Answered(
            item=item,
            sample=sample,
            question="q",
            reference="5",
            output="5",
            answer="5",
            verdict="right" if right else "wrong",
            tokens=1,
            ended="eos",
            programs=0,
            programs_timed_out=0,
        )
        for item, samples in enumerate(verdicts)
        for sample, right in enumerate(samples)
    ]
    return of_answers(TASK, answers, (1, 2), **HASHES)


def test_accuracies_of_0_and_100_percent_have_intervals() -> None:
    # Wilson's score interval of 0 of 20: 3.8415 / 23.8415.
    for right in (False, True):
        found = result_of(*[[right]] * 20).accuracy
        assert found is not None
        assert (found.mean, found.standard_error) == (right, 0)
        assert (found.low, found.high) == pytest.approx((0.8389, 1) if right else (0, 0.1611), abs=1e-4)


def test_one_item_has_an_interval_without_a_standard_error() -> None:
    found = result_of([True]).accuracy
    assert found is not None
    assert found.standard_error is None
    assert (found.low, found.high) == pytest.approx((0.2065, 1), abs=1e-4)


def test_samples_have_intervals() -> None:
    found = result_of(*[[False, False]] * 20)
    for each in (found.accuracy, found.pass_at[2], found.majority_at[2]):
        assert each is not None
        assert (each.low, each.high) == pytest.approx((0, 0.1611), abs=1e-4)


def test_losses_have_intervals_of_resamples_and_choices_those_of_shares() -> None:
    measured = [
        MeasuredItem(
            item=item,
            solution_nats=2.0 + item,
            solution_tokens=1,
            solution_bytes=4,
            choice_nats=(1.0, 2.0),
            choice_bytes=(1, 1),
            right_choice=0,
        )
        for item in range(20)
    ]
    found = of_losses(TASK, measured, **HASHES)
    assert found.nats_per_token is not None
    assert found.choice_accuracy is not None
    assert found.nats_per_token.low is not None
    assert 2 < found.nats_per_token.low < found.nats_per_token.mean == 11.5
    assert found.choice_accuracy.low == pytest.approx(0.8389, abs=1e-4)
    assert of_losses(TASK, measured[:1], **HASHES).nats_per_token.low is None  # type: ignore[union-attr]
