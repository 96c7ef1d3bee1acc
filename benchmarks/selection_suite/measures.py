"""What a finished run shows: its losses, what it had spent when it came to the baseline's loss, and what it kept."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.selection_suite.plan import Run
from benchmarks.selection_suite.settings import BASELINE
from benchmarks.selection_suite.truth import END, kinds_of_targets
from megaslm.config.run_files import PROBE
from megaslm.model.folder import read_config
from megaslm.model.traced_memory import parameter_counts
from megaslm.observe.probe_files import ProbeRows, measured_steps, read_measurement, read_rows
from megaslm.report.runs import ReportedRun, read_runs
from megaslm.report.targets import final_loss, reached

TARGET_PLACE = "target"
AXES = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class Kept:
    """What a run's selection keeps of the probe rows, by the kinds of their targets."""

    tokens: list[float]
    """Targets that the run had read at each measurement."""
    shares: dict[str, list[float]]
    """For each kind the share of its targets that is kept, at each measurement. Kept are all targets of a run without
    a selection."""
    losses: dict[str, float]
    """For each kind the mean loss of the end model, in nats."""
    targets: dict[str, int]
    """Targets of each kind."""


@dataclass(frozen=True)
class Measures:
    """The measures of one run."""

    pair: str
    arm: str
    seed: int
    parameters: int
    """Of its model."""
    losses: dict[str, float]
    """The last loss of each held-out text, in nats."""
    curve: list[tuple[float, float]]
    """Targets read and the loss of the target, at each validation."""
    spent: dict[str, float | None]
    """Tokens, FLOPs and seconds of the run alone."""
    before: dict[str, float | None]
    """FLOPs and seconds of the training of its reference and of the scoring, once for all runs that use them."""
    shared_by: int
    """Runs that read the same scores; 1 where there are none."""
    times_cheaper: dict[str, float | None]
    """How many times more the baseline of the same seed had spent when it came to its last loss of the target than this
    run had spent at that loss. By axis; AXIS_with_reference counts reference and scoring in whole, and AXIS_shared
    their part of a run that shares them. None where the run never came to that loss."""
    kept: Kept | None


def measures_of(folders: Mapping[Run, Path], probe: Path, probe_texts: Path) -> list[Measures]:
    """The measures of the finished runs of one pair. `probe`: the tokens of the probe; `probe_texts`: its documents."""
    if not folders:
        return []
    found = dict(zip(folders, read_runs(list(folders.values())), strict=True))
    readers = Counter(run.before.corpus for run in found.values())
    labels, kinds = kinds_of_targets(probe, "corpus", probe_texts)
    measured = []
    for run, reported in found.items():
        baseline = found.get(Run(run.pair, BASELINE, run.seed))
        shared_by = readers[reported.before.corpus] if reported.before.corpus else 1
        measured.append(
            Measures(
                **asdict(run),
                parameters=parameter_counts(read_config(reported.model))[0].total,
                losses={place: final_loss(reported, place) for place in reported.metrics.validations},
                curve=_curve(reported),
                spent={axis: _last(values) for axis, values in reported.spent.items() if axis in AXES},
                before={axis: reported.before.total(axis) for axis in ("flops", "seconds")},
                shared_by=shared_by,
                times_cheaper=times_cheaper(reported, baseline, shared_by),
                kept=_kept(folders[run], labels, kinds),
            )
        )
    return measured


def times_cheaper(
    run: ReportedRun, baseline: ReportedRun | None, shared_by: int, place: str = TARGET_PLACE
) -> dict[str, float | None]:
    """See `Measures.times_cheaper`. All None without a baseline."""
    names = [*AXES, *(f"{axis}_{way}" for axis in AXES[1:] for way in ("with_reference", "shared"))]
    if baseline is None:
        return dict.fromkeys(names)
    loss = final_loss(baseline, place)
    own, others = reached(run, place, loss), reached(baseline, place, loss)
    result: dict[str, float | None] = {}
    for axis in AXES:
        spent, by_baseline = (None if amounts is None else amounts[axis] for amounts in (own, others))
        result[axis] = _ratio(by_baseline, spent)
        if axis in AXES[1:]:
            before = run.before.total(axis)
            for way, part in (("with_reference", 1.0), ("shared", 1.0 / shared_by)):
                whole = None if spent is None or before is None else spent + before * part
                result[f"{axis}_{way}"] = _ratio(by_baseline, whole)
    return result


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _last(values: NDArray[np.float64] | None) -> float | None:
    return None if values is None or len(values) == 0 else float(values[-1])


def _curve(run: ReportedRun) -> list[tuple[float, float]]:
    found = run.metrics.validations[TARGET_PLACE]
    return [(float(tokens), float(loss)) for tokens, loss in zip(found.tokens, found.values, strict=True)]


def _kept(run: Path, labels: NDArray[np.int16], kinds: Sequence[str]) -> Kept | None:
    folder = run / PROBE
    rows = read_rows(folder)
    if rows is None:
        return None
    own = labels[rows.row]
    wanted = {kind: (own == number) & rows.valid for number, kind in enumerate(kinds) if kind != END}
    wanted = {kind: where for kind, where in wanted.items() if where.any()}
    measured = [read_measurement(folder, step, rows) for step in measured_steps(folder)]
    return Kept(
        tokens=[float(each.tokens_seen) for each in measured],
        shares={kind: list(_shares(rows, where, (each.kept for each in measured))) for kind, where in wanted.items()},
        losses={kind: float(measured[-1].losses[where].mean()) for kind, where in wanted.items()},
        targets={kind: int(where.sum()) for kind, where in wanted.items()},
    )


def _shares(rows: ProbeRows, where: NDArray[np.bool_], kept: Iterable[NDArray[np.bool_] | None]) -> Iterable[float]:
    for each in kept:
        yield float((rows.valid if each is None else each)[where].mean())
