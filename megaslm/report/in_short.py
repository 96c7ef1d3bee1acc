"""A report in a few sentences: for the terminal, and for a browser that runs no scripts."""

from collections.abc import Mapping, Sequence
from typing import Any

from megaslm.report.runs import ReportedRun
from megaslm.report.targets import baseline_of, sentences, shared_places


def in_short(runs: Sequence[ReportedRun], costs: Mapping[str, Any], sweep: Mapping[str, Any] | None) -> list[str]:
    """How each selective run ended at each place beside the baseline, and when its preparation has paid for itself.

    Without a baseline, the best value of a sweep. Empty where nothing is compared.
    """
    baseline = baseline_of(runs)
    if baseline is not None and (places := shared_places(baseline, runs)):
        compared = [sentence for place in places for sentence in sentences(place, baseline, runs)]
        return [*compared, *(balance["sentence"] for balance in costs["break_even"])]
    best = None if sweep is None else sweep["best"]
    return [] if best is None else [best["sentence"]]
