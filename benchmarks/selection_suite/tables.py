"""The results of all runs: over the seeds for each arm, as JSON and as tables in Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import log2

from benchmarks.selection_suite.measures import TARGET_PLACE, Measures
from benchmarks.selection_suite.pairs import TARGET
from benchmarks.selection_suite.settings import AT, BASELINE, CONTROL
from benchmarks.selection_suite.student_t import Mean, Paired, mean_of, paired, slope_of


@dataclass(frozen=True)
class ArmResult:
    """One arm of one pair over its seeds."""

    pair: str
    arm: str
    seeds: tuple[int, ...]
    losses: dict[str, Mean]
    """The last loss of each held-out text, in nats."""
    against: dict[str, Paired]
    """The loss of the target minus that of the baseline, and of the control, over the seeds that both have."""
    times_cheaper: dict[str, Mean]
    """See `Measures.times_cheaper`. Empty means where a seed never came to the baseline's loss."""
    reached: int
    """The seeds that came to the baseline's loss."""
    kept: dict[str, float]
    """For each kind of the probe's targets the share that the end model keeps, over the seeds."""
    precision: float | None
    """The share of target-like tokens among those that the end model keeps."""


def results_of(measured: Sequence[Measures]) -> list[ArmResult]:
    """One result for each arm of each pair, in the order in which the runs first name them."""
    arms = dict.fromkeys((each.pair, each.arm) for each in measured)
    return [_result([each for each in measured if (each.pair, each.arm) == arm], measured) for arm in arms]


def _result(runs: Sequence[Measures], all_runs: Sequence[Measures]) -> ArmResult:
    first = runs[0]
    came = [run for run in runs if run.times_cheaper["tokens"] is not None]
    rivals = [rival for rival in (BASELINE, CONTROL) if rival != first.arm]
    found = [run.kept for run in runs if run.kept is not None]
    kept = {kind: _mean(each.shares[kind][-1] for each in found) for kind in (found[0].targets if found else {})}
    counts = found[0].targets if found else {}
    total = sum(share * counts[kind] for kind, share in kept.items())
    return ArmResult(
        pair=first.pair,
        arm=first.arm,
        seeds=tuple(run.seed for run in runs),
        losses={place: mean_of([run.losses[place] for run in runs]) for place in first.losses},
        against={
            rival: _against(runs, [each for each in all_runs if (each.pair, each.arm) == (first.pair, rival)])
            for rival in rivals
        },
        times_cheaper={
            axis: mean_of([run.times_cheaper[axis] or 0.0 for run in runs] if len(came) == len(runs) else [])
            for axis in first.times_cheaper
        },
        reached=len(came),
        kept=kept,
        precision=kept[TARGET] * counts[TARGET] / total if TARGET in kept and total else None,
    )


def _against(runs: Sequence[Measures], rivals: Sequence[Measures]) -> Paired:
    by_seed = {run.seed: run.losses[TARGET_PLACE] for run in rivals}
    both = [run for run in runs if run.seed in by_seed]
    return paired([run.losses[TARGET_PLACE] for run in both], [by_seed[run.seed] for run in both])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def as_json(measured: Sequence[Measures], results: Sequence[ArmResult]) -> dict[str, object]:
    """All numbers: of every run, and of every arm. Named tuples become mappings."""
    return {"runs": [asdict(each) for each in measured], "arms": [_named(asdict(each)) for each in results]}


def _named(value: object) -> object:
    if isinstance(value, Mean | Paired):
        return _named(value._asdict())
    if isinstance(value, dict):
        return {key: _named(entry) for key, entry in value.items()}
    return value


def as_markdown(results: Sequence[ArmResult]) -> str:
    """For each pair a table of losses and costs, and one of what is kept."""
    parts = []
    for pair in dict.fromkeys(result.pair for result in results):
        own = [result for result in results if result.pair == pair]
        parts += [f"## {pair}", *_losses_table(own), "", *_kept_table(own), ""]
    return "\n".join(parts)


def scaling_table(measured: Sequence[Measures]) -> str:
    """How the gain over the baseline changes with the model's size; empty where no pair has other sizes.

    The slope is that of a line through all seeds of all sizes, per doubling of the parameters.
    """
    sized = dict.fromkeys(each.pair.partition(AT)[0] for each in measured if AT in each.pair)
    losses = {(each.pair, each.arm, each.seed): each.losses[TARGET_PLACE] for each in measured}
    rows: list[list[str]] = []
    for pair in sized:
        runs = [each for each in measured if each.pair.partition(AT)[0] == pair and each.arm != BASELINE]
        for arm in dict.fromkeys(each.arm for each in runs if AT in each.pair):
            found = [
                (each.parameters, losses[baseline] - each.losses[TARGET_PLACE], each.times_cheaper["tokens"])
                for each in runs
                if each.arm == arm and (baseline := (each.pair, BASELINE, each.seed)) in losses
            ]
            for parameters in sorted({size for size, *_ in found}):
                gains, times = zip(*((gain, ratio) for size, gain, ratio in found if size == parameters), strict=True)
                cells = [pair, arm, f"{parameters / 1e6:.2f}M", str(len(gains)), _with_interval(mean_of(gains), 4)]
                rows.append([*cells, _with_interval(mean_of(times if None not in times else []), 2)])
            by_gain = slope_of([(log2(size), gain) for size, gain, _ in found])
            by_tokens = slope_of([(log2(size), ratio) for size, _, ratio in found if ratio is not None])
            cells = [pair, arm, "per doubling", str(len(found))]
            rows.append([*cells, _with_interval(by_gain, 4), _with_interval(by_tokens, 2)])
    columns = ["pair", "arm", "parameters", "seeds", f"{BASELINE}'s loss − the arm's", "× tokens"]
    return "\n".join(["## Sizes", *_table(columns, rows)]) if rows else ""


def _losses_table(results: Sequence[ArmResult]) -> list[str]:
    places = [place for place in results[0].losses if place != TARGET_PLACE]
    columns = [
        *("arm", "seeds", "target loss", f"− {BASELINE}", "p", f"− {CONTROL}", "p", "× tokens", "× FLOPs, shared"),
        *("× FLOPs, whole", "× seconds, shared", *places),
    ]
    rows = []
    for result in results:
        times, baseline, control = result.times_cheaper, result.against.get(BASELINE), result.against.get(CONTROL)
        tokens = _with_interval(times["tokens"], 2)
        if result.reached < len(result.seeds):
            tokens = f"reached by {result.reached}"
        cells = [result.arm, str(len(result.seeds)), _with_interval(result.losses[TARGET_PLACE], 4)]
        cells += [*_compared(baseline), *_compared(control), tokens]
        cells += [_plain(times[axis], 2) for axis in ("flops_shared", "flops_with_reference", "seconds_shared")]
        rows.append([*cells, *(_plain(result.losses[place], 4) for place in places)])
    return _table(columns, rows)


def _kept_table(results: Sequence[ArmResult]) -> list[str]:
    kinds = list(results[0].kept)
    rows = [
        [result.arm, *(f"{result.kept[kind]:.0%}" for kind in kinds), _percent(result.precision)]
        for result in results
        if result.kept
    ]
    return _table(["kept at the end", *kinds, f"{TARGET} among the kept"], rows) if rows else []


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _compared(found: Paired | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return _with_interval(found.difference, 4), "" if found.p_value is None else f"{found.p_value:.2g}"


def _with_interval(found: Mean, digits: int) -> str:
    if found.mean is None:
        return "–"
    interval = "" if found.low is None else f" ({found.low:.{digits}f} to {found.high:.{digits}f})"
    return f"{found.mean:.{digits}f}{interval}"


def _plain(found: Mean, digits: int) -> str:
    return "–" if found.mean is None else f"{found.mean:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
