"""Results as tables on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from megaslm.config.task import Suite, task_name
from megaslm.evaluation.compare import TaskComparison
from megaslm.evaluation.overlap import TaskOverlap
from megaslm.evaluation.records import Estimate, ModelCost, Results
from megaslm.evaluation.trajectories import MESSAGES, Sampled
from megaslm.observe.display import duration

_WIDTH_OF_PIPES = 200
_UNKNOWN = "?"


def wide_console() -> Console:
    """A console whose tables keep their columns where the output is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_PIPES)


def show_results(console: Console, results: Results, suite: Suite | None) -> None:
    """One row per task, and the table of a suite."""
    tables = {"answers": _answers, "losses": _losses, "lm-eval": _lm_eval}
    console.print(tables[results.description.measure](results))
    if suite is not None and results.description.measure != "losses":
        console.print(_suite(results, suite))


def _answers(results: Results) -> Table:
    table = Table("task", *(_right(name) for name in ("items", "accuracy", "95% interval", "±", "empty")), box=None)
    for name in ("truncated", "ungradable"):
        table.add_column(name, justify="right")
    runs_programs = any(task.answers_with_programs is not None for task in results.tasks.values())
    for name in ("with programs", "programs", "failed") if runs_programs else ():
        table.add_column(name, justify="right")
    ks = sorted({k for task in results.tasks.values() for k in task.pass_at if k > 1})
    for k in ks:
        table.add_column(f"pass@{k}", justify="right")
        table.add_column(f"maj@{k}", justify="right")
    for name, task in results.tasks.items():
        more = [_percent(each.get(k)) for k in ks for each in (task.pass_at, task.majority_at)]
        programs = (task.answers_with_programs, task.programs, task.programs_failed) if runs_programs else ()
        table.add_row(
            name,
            f"{task.items:,}",
            _percent(task.accuracy),
            _interval(task.accuracy),
            _error(task.accuracy),
            f"{task.empty:,}",
            f"{task.truncated:,}",
            f"{task.ungradable:,}",
            *map(_count, programs),
            *more,
        )
    return table


def _losses(results: Results) -> Table:
    columns = ("items", "nats per token", "bits per byte", "choice", "choice per byte")
    table = Table("task", *(_right(name) for name in columns), box=None)
    for name, task in results.tasks.items():
        nats, bits = task.nats_per_token, task.bits_per_byte
        table.add_row(
            name,
            f"{task.items:,}",
            "–" if nats is None else f"{nats.mean:.4f}",
            "–" if bits is None else f"{bits:.4f}",
            _percent(task.choice_accuracy),
            _percent(task.choice_accuracy_per_byte),
        )
    return table


def _lm_eval(results: Results) -> Table:
    columns = ("items", "accuracy", "95% interval", "±")
    table = Table("task", *(_right(name) for name in columns), "reported", "metrics of lm-eval", box=None)
    for name, task in results.tasks.items():
        table.add_row(
            name,
            f"{task.items:,}",
            _percent(task.accuracy),
            _interval(task.accuracy),
            _error(task.accuracy),
            task.grader.removeprefix("lm-eval "),
            " · ".join(f"{metric} {value:.4f}" for metric, value in task.metrics.items()),
        )
    return table


def _suite(results: Results, suite: Suite) -> Table:
    """The paper's form: models by tasks. Published rows are marked; the average is over tasks that a row has."""
    columns = (*suite.names, "average", "tokens seen", "selected", "total cost")
    table = Table("model", *(_right(name) for name in columns), box=None)
    for row in suite.published:
        accuracy = {task_name(task): value for task, value in row.accuracy.items()}
        found = [accuracy.get(task) for task in suite.names]
        counts = (row.tokens_seen, row.tokens_selected)
        table.add_row(f"{row.model}, published: {row.source}", *_accuracies(found), *map(_tokens, counts), _UNKNOWN)
    measured = {name: task.accuracy.mean * 100 for name, task in results.tasks.items() if task.accuracy is not None}
    own = [measured.get(task) for task in suite.names]
    cost = results.cost
    counts = (None, None) if cost is None else (cost.tokens_seen, cost.tokens_selected)
    name = f"{results.description.model}, measured"
    table.add_row(name, *_accuracies(own), *map(_tokens, counts), _UNKNOWN if cost is None else _total(cost))
    return table


def _accuracies(values: Sequence[float | None]) -> list[str]:
    return [*map(_plain, values), _plain(_mean(values))]


def _tokens(count: int | None) -> str:
    """A number of tokens, such as `15.0B`."""
    if count is None:
        return _UNKNOWN
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f}{unit}"
    return str(count)


def _total(cost: ModelCost) -> str:
    """The whole cost, or the part of it that is known."""
    total = f"{cost.gpu_hours:,.3g} GPU-hours" if cost.gpu_hours else f"{duration(cost.seconds)} on CPUs"
    return total if cost.is_complete else f"more than {total}"


def show_comparisons(console: Console, comparisons: Sequence[TaskComparison]) -> None:
    """One row per task: both accuracies, their difference with its interval, and McNemar's test."""
    columns = ("items", "first", "second", "difference", "95% interval", "only first", "only second", "p")
    table = Table("task", *(_right(name) for name in columns), box=None)
    for each in comparisons:
        found = each.comparison
        table.add_row(
            each.task,
            f"{each.items:,}",
            f"{each.first:.1%}",
            f"{each.second:.1%}",
            f"{found.difference * 100:+.1f}",
            f"{found.interval.low * 100:+.1f} to {found.interval.high * 100:+.1f}",
            f"{found.only_first:,}",
            f"{found.only_second:,}",
            f"{found.p_value:.3f}",
        )
    console.print(table)


def show_overlaps(console: Console, overlaps: Sequence[TaskOverlap]) -> None:
    """One row per task: how many of its items share 13 words in a row with the dataset."""
    table = Table("task", *(_right(name) for name in ("items", "short", "found", "share")), box=None)
    for each in overlaps:
        share = len(each.found) / max(1, each.items)
        table.add_row(each.task, f"{each.items:,}", f"{each.short:,}", f"{len(each.found):,}", f"{share:.1%}")
    console.print(table)


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _percent(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.mean:.1%}"


def show_sampled(console: Console, sampled: Sampled, output: Path) -> None:
    """What becomes of the answers that were drawn, one row per task, and where the kept ones are."""
    shown = ("wrong", "truncated", "without_program", "failing", "malformed", "repeated", "surplus", "avoided")
    columns = ("items", "answers", *(name.replace("_", " ") for name in shown), "kept", "of items")
    table = Table("task", *map(_right, columns), box=None)
    for name, task in sampled.tasks.items():
        numbers = (task.items, task.answers, *(getattr(task, reason) for reason in shown), task.kept, task.items_kept)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    console.print(f"{sum(task.kept for task in sampled.tasks.values()):,} conversations in {output / MESSAGES}")


def _count(found: int | None) -> str:
    return "–" if found is None else f"{found:,}"


def _interval(found: Estimate | None) -> str:
    return "–" if found is None or found.low is None or found.high is None else f"{found.low:.1%} to {found.high:.1%}"


def _error(found: Estimate | None) -> str:
    return "–" if found is None or found.standard_error is None else f"{found.standard_error * 100:.1f}"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
