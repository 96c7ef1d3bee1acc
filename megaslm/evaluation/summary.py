"""The result of a task, from the outcomes of its batches."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from megaslm.config.task import Task
from megaslm.evaluation.records import Answered, Estimate, TaskResult
from megaslm.tasks.losses import MeasuredItem, losses_of
from megaslm.tasks.statistics import SHARES, Interval, bootstrap, interval, majority_at_k, pass_at_k, standard_error


def estimate(values: Sequence[float]) -> Estimate | None:
    """A mean with its uncertainty; None without values."""
    return _estimate(values, bootstrap(values)) if values else None


def share(values: Sequence[float]) -> Estimate | None:
    """A mean of shares with its uncertainty; None without values."""
    return _estimate(values, interval(values, SHARES)) if values else None


def _estimate(values: Sequence[float], uncertainty: Interval) -> Estimate:
    error = standard_error(values)
    # One value resampled is itself, which says nothing.
    known = uncertainty.low < uncertainty.high or len(values) > 1
    return Estimate(
        mean=sum(values) / len(values),
        standard_error=error if math.isfinite(error) else None,
        low=uncertainty.low if known else None,
        high=uncertainty.high if known else None,
    )


def of_answers(
    task: Task, answers: Iterable[Answered], k: Sequence[int], *, task_sha256: str, data_sha256: str
) -> TaskResult:
    """Accuracy, pass@k and maj@k of a task's answers, in any order."""
    ordered = sorted(answers, key=lambda each: (each.item, each.sample))
    by_item = [list(group) for _, group in groupby(ordered, key=lambda each: each.item)]
    right = [[each.verdict == "right" for each in group] for group in by_item]
    samples = max(map(len, by_item), default=0)

    def over_items(value: Callable[[int], float]) -> Estimate | None:
        return share([value(place) for place in range(len(by_item))])

    counts = [each.tokens for each in ordered]
    ran = [(each.programs, each.programs_failed) for each in ordered if each.programs_failed is not None]
    knows_failed = task.interpreter and len(ran) == len(ordered)
    possible = [each for each in k if each <= samples]
    return TaskResult(
        items=len(by_item),
        samples=samples,
        grader=task.grader,
        accuracy=over_items(lambda place: sum(right[place]) / len(right[place])),
        pass_at=_known(
            {each: over_items(lambda place, k=each: pass_at_k(samples, sum(right[place]), k)) for each in possible}  # type: ignore[misc]
        ),
        majority_at=_known(
            {
                each: over_items(
                    lambda place, k=each: majority_at_k(  # type: ignore[misc]
                        [one.answer for one in by_item[place]], right[place], k, key=by_item[place][0].item
                    )
                )
                for each in possible
                if each > 1
            }
        ),
        empty=sum(not each.answer for each in ordered),
        truncated=sum(each.ended == "length" for each in ordered),
        ungradable=sum(each.verdict == "ungradable" for each in ordered),
        programs=sum(each.programs for each in ordered),
        answers_with_programs=sum(programs > 0 for programs, _ in ran) if knows_failed else None,
        answers_with_done_programs=sum(programs > failed for programs, failed in ran) if knows_failed else None,
        programs_failed=sum(failed for _, failed in ran) if knows_failed else None,
        programs_timed_out=sum(each.programs_timed_out for each in ordered),
        tokens=None if None in counts else sum(count for count in counts if count is not None),
        task_sha256=task_sha256,
        data_sha256=data_sha256,
    )


def of_losses(task: Task, measured: Iterable[MeasuredItem], *, task_sha256: str, data_sha256: str) -> TaskResult:
    """Losses of written solutions, and choices by their likelihood."""
    items = list(measured)
    losses = losses_of(items)
    return TaskResult(
        items=len(items),
        samples=1,
        grader=task.grader,
        nats_per_token=estimate(losses.nats_per_token),
        bits_per_byte=losses.bits_per_byte,
        choice_accuracy=share(losses.is_chosen),
        choice_accuracy_per_byte=share(losses.is_chosen_per_byte),
        task_sha256=task_sha256,
        data_sha256=data_sha256,
    )


def _known(estimates: dict[int, Estimate | None]) -> dict[int, Estimate]:
    return {k: found for k, found in estimates.items() if found is not None}
