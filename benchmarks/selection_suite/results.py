"""The files that the suite leaves: results.json, results.md and figures."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness.report import commit, machine
from benchmarks.selection_suite.figures import Line, chart
from benchmarks.selection_suite.measures import Measures
from benchmarks.selection_suite.settings import BASELINE
from benchmarks.selection_suite.tables import ArmResult, as_json, as_markdown, results_of, scaling_table
from megaslm.files import write_file

_RATIO = re.compile(r"slm-([\d.]+)")


def write_results(folder: Path, measured: Sequence[Measures], headline: Sequence[str]) -> str:
    """Writes results.json, results.md and the figures, and returns the tables. `headline`: the arms of the first
    figure."""
    results = results_of(measured)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"commit": commit(), "date": now, "machine": machine()}
    text = "\n".join(filter(None, [as_markdown(results), scaling_table(measured)]))
    write_file(folder / "results.json", json.dumps({**facts, **as_json(measured, results)}, indent=1) + "\n")
    on = ", ".join(f"{name} {value}" for name, value in machine().items())
    title = f"# Token selection\n\nCommit {facts['commit']}, {now}; {on}.\n\n"
    write_file(folder / "results.md", title + text + "\n")
    for name, figure in figures(measured, results, headline).items():
        write_file(folder / name, figure)
    return text


def figures(measured: Sequence[Measures], results: Sequence[ArmResult], headline: Sequence[str]) -> Mapping[str, str]:
    """The figures of each pair by their files: the loss of the target over the run, over the ratio, and what the
    headline arms keep."""
    found: dict[str, str] = {}
    for pair in dict.fromkeys(each.pair for each in measured):
        runs = [each for each in measured if each.pair == pair]
        curves = [Line(arm, _mean_curve([run for run in runs if run.arm == arm])) for arm in headline]
        curves = [curve for curve in curves if curve.points]
        if curves:
            found[f"{pair}-target-loss.svg"] = chart(f"{pair}: held-out target", "tokens read", "loss, nats", curves)
        ratios = sorted(_ratios([result for result in results if result.pair == pair]))
        if len(ratios) > 2:
            found[f"{pair}-ratio.svg"] = chart(
                f"{pair}: end of the run over the kept share",
                "kept share",
                f"target loss − {BASELINE}'s, nats",
                [Line("SLM", ratios)],
            )
        for arm in headline:
            kept = [run.kept for run in runs if run.arm == arm and run.kept is not None]
            if arm != BASELINE and kept:
                lines = [
                    Line(kind, _mean_points([list(zip(each.tokens, each.shares[kind], strict=True)) for each in kept]))
                    for kind in kept[0].shares
                ]
                found[f"{pair}-kept-{arm}.svg"] = chart(f"{pair}: kept by {arm}", "tokens read", "kept share", lines)
    return found


def _ratios(results: Sequence[ArmResult]) -> list[tuple[float, float]]:
    """The kept share of the arms named slm-RATIO, and the mean of their last loss of the target minus the baseline's of
    the same seed. Arms with other seeds can be compared by it. The baseline keeps all."""
    found = [(1.0, 0.0)]
    for result in results:
        named = _RATIO.fullmatch(result.arm)
        if named and (difference := result.against[BASELINE].difference.mean) is not None:
            found.append((float(named[1]), difference))
    return found


def _mean_curve(runs: Sequence[Measures]) -> list[tuple[float, float]]:
    return _mean_points([run.curve for run in runs])


def _mean_points(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean over curves that were measured at the same x."""
    return [(points[0][0], sum(point[1] for point in points) / len(points)) for points in zip(*curves, strict=True)]
