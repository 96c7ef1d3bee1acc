"""The result of a task, from the outcomes of its batches."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from megaslm.config.task import Task
from megaslm.evaluation.records import Answered, Estimate, MeasuredItem, TaskResult
from megaslm.tasks.statistics import SHARES, Interval, bootstrap, interval, majority_at_k, pass_at_k, standard_error

_NATS_PER_BIT = math.log(2)


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
        programs_timed_out=sum(each.programs_timed_out for each in ordered),
        tokens=None if None in counts else sum(count for count in counts if count is not None),
        task_sha256=task_sha256,
        data_sha256=data_sha256,
    )


def of_losses(task: Task, measured: Iterable[MeasuredItem], *, task_sha256: str, data_sha256: str) -> TaskResult:
    """Losses of written solutions, and choices by their likelihood."""
    items = sorted(measured, key=lambda each: each.item)
    solved = [
        (each.solution_nats, each.solution_tokens, each.solution_bytes)
        for each in items
        if each.solution_nats is not None and each.solution_tokens and each.solution_bytes
    ]
    choosing = [each for each in items if each.right_choice is not None]
    total_bytes = sum(size for _, _, size in solved if size)
    return TaskResult(
        items=len(items),
        samples=1,
        grader=task.grader,
        nats_per_token=estimate([nats / tokens for nats, tokens, _ in solved if tokens]),
        bits_per_byte=sum(nats for nats, _, _ in solved) / _NATS_PER_BIT / total_bytes if total_bytes else None,
        choice_accuracy=share([_chosen(each.choice_nats) == each.right_choice for each in choosing]),
        choice_accuracy_per_byte=share(
            [
                _chosen([nats / size for nats, size in zip(each.choice_nats, each.choice_bytes, strict=True)])
                == each.right_choice
                for each in choosing
            ]
        ),
        task_sha256=task_sha256,
        data_sha256=data_sha256,
    )


def _chosen(nats: Sequence[float]) -> int:
    return min(range(len(nats)), key=nats.__getitem__)


def _known(estimates: dict[int, Estimate | None]) -> dict[int, Estimate]:
    return {k: found for k, found in estimates.items() if found is not None}
