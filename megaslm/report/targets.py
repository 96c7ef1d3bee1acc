"""How much each run had to spend until it reached a loss of the baseline."""

import math
from collections.abc import Sequence

import numpy as np

from megaslm.report.metrics import Measured
from megaslm.report.packed import known
from megaslm.report.runs import ReportedRun
from megaslm.report.settings import difference
from megaslm.report.spent import AXES

WAYS = ((0.5, "half of the way of"), (0.75, "three quarters of the way of"))
"""Shares of the way from the baseline's first loss to its last one."""
_EQUAL_SHARE = 0.01
_COUNTED_IN = ("flops", "seconds", "gpu_hours")


Amounts = dict[str, float | None]
"""What a run had spent, by the names of `AXES`, and as NAME_with_reference what came before it included. None where
it is unknown."""


def baseline_of(runs: Sequence[ReportedRun]) -> ReportedRun | None:
    """The CLM run whose settings differ least from those of the selective runs; None without runs of both kinds."""
    selective = [run for run in runs if run.is_selective]
    plain = [run for run in runs if run.config.train.objective == "clm" and run.metrics.validations]
    if not selective or not plain:
        return None
    return min(plain, key=lambda run: sum(len(difference(run.config, other.config)) for other in selective))


def shared_places(baseline: ReportedRun, runs: Sequence[ReportedRun]) -> list[str]:
    """The validated places that a selective run has too, in the order of their measurement; where the baseline ended
    with a finite loss."""
    return [
        place
        for place in baseline.metrics.validations
        if math.isfinite(final_loss(baseline, place))
        and any(run.is_selective and place in run.metrics.validations for run in runs)
    ]


def targets_of(runs: Sequence[ReportedRun]) -> list[dict[str, object]]:
    """A table for each place that the baseline and a selective run have measured."""
    baseline = baseline_of(runs)
    return [] if baseline is None else [_table(place, baseline, runs) for place in shared_places(baseline, runs)]


def reached(run: ReportedRun, place: str, loss: float) -> Amounts | None:
    """What the run had spent when its loss at a place was first at most `loss`; linear between two validations.

    None if it never was.
    """
    found = run.metrics.validations.get(place)
    tokens = None if found is None else _first_tokens(found, loss)
    if tokens is None:
        return None
    at = run.spent.at(np.array([tokens]))
    alone = {name: None if values is None else known(float(values[0])) for name, values in at.items()}
    return alone | {f"{axis}_with_reference": _sum(alone[axis], run.before.total(axis)) for axis in _COUNTED_IN}


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _first_tokens(found: Measured, loss: float) -> float | None:
    low = np.flatnonzero(found.values <= loss)
    if len(low) == 0:
        return None
    after = int(low[0])
    if after == 0 or not math.isfinite(found.values[after - 1]):
        return float(found.tokens[after])
    above, below = found.values[after - 1], found.values[after]
    share = (above - loss) / (above - below)
    return float(found.tokens[after - 1] + share * (found.tokens[after] - found.tokens[after - 1]))


def final_loss(run: ReportedRun, place: str) -> float:
    """The last loss that a run has measured at a place; NaN where it has none."""
    found = run.metrics.validations.get(place)
    return math.nan if found is None else float(found.values[-1])


def _table(place: str, baseline: ReportedRun, runs: Sequence[ReportedRun]) -> dict[str, object]:
    first, last = float(baseline.metrics.validations[place].values[0]), final_loss(baseline, place)
    end = "the end of" if baseline.is_complete else "the last validation of"
    levels = [(first + share * (last - first), why) for share, why in WAYS if last < first]
    rows = [
        {
            "loss": known(loss),
            "why": f"{why} {baseline.name}",
            "reached": [_row(run, place, loss) for run in _with(place, runs)],
        }
        for loss, why in [*levels, (last, end)]
    ]
    return {
        "place": place,
        "baseline": baseline.name,
        "sentence": " ".join(sentences(place, baseline, runs)),
        "rows": rows,
    }


def sentences(place: str, baseline: ReportedRun, runs: Sequence[ReportedRun]) -> list[str]:
    """How each selective run ended at a place, beside the baseline: a sentence per run. And one for each reference that
    is worse there than the baseline."""
    measured = _with(place, runs)
    selective = [run for run in measured if run.is_selective]
    worse = [
        f"{reference.name}, the reference, ended at {final_loss(reference, place):.4f} on {place}, above "
        f"{baseline.name}: train it longer or at another learning rate."
        for reference in measured
        if any(reference.is_reference_of(run) for run in selective)
        and final_loss(reference, place) > final_loss(baseline, place)
    ]
    return [*(_sentence(run, place, baseline) for run in selective), *worse]


def _with(place: str, runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    return [run for run in runs if place in run.metrics.validations]


def _row(run: ReportedRun, place: str, loss: float) -> dict[str, object]:
    found = reached(run, place, loss)
    names = (*AXES, *(f"{axis}_with_reference" for axis in _COUNTED_IN))
    return {"run": run.name, **(dict.fromkeys(names) if found is None else found)}


def _sentence(run: ReportedRun, place: str, baseline: ReportedRun) -> str:
    last, (loss, tokens_read) = final_loss(run, place), _beside(run, place, baseline)
    ended = "ended" if run.is_complete and baseline.is_complete else "is so far"
    gap = f"{abs(last - loss):.4f} nats {'lower' if last <= loss else 'higher'} than {baseline.name}"
    first = f"{run.name} {ended} {gap} on {place} ({last:.4f} against {loss:.4f}{tokens_read})"
    own, others = (reached(one, place, final_loss(baseline, place)) for one in (run, baseline))
    if own is None or others is None:
        return f"{first}; it has not reached {baseline.name}'s last loss."
    tokens, of = own["tokens"] or 0.0, others["tokens"] or 0.0
    share = f" ({tokens / of:.0%})" if of else ""
    return f"{first}; it reached {baseline.name}'s last loss after {tokens:,.0f} of {of:,.0f} tokens{share}."


def _beside(run: ReportedRun, place: str, baseline: ReportedRun) -> tuple[float, str]:
    """The baseline's last loss, or that at as many tokens where the run has read fewer; and how many tokens the two had
    read, where their last losses differ in it by more than a hundredth."""
    found = baseline.metrics.validations[place]
    own, others = (int(one.metrics.validations[place].tokens[-1]) for one in (run, baseline))
    if abs(own - others) <= _EQUAL_SHARE * others:
        return final_loss(baseline, place), ""
    if own < others:
        return float(np.interp(own, found.tokens, found.values)), f", both after {own:,} tokens"
    return final_loss(baseline, place), f", after {own:,} against {others:,} tokens"
