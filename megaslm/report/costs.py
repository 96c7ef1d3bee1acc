"""What the runs cost, what selective training saved, and after how many runs its preparation has paid for itself."""

from collections.abc import Sequence

from megaslm.observe.display import duration, rounded
from megaslm.report.before import StageSpent
from megaslm.report.runs import ReportedRun
from megaslm.report.spent import AXES
from megaslm.report.targets import baseline_of, final_loss, reached, shared_places


def costs_of(runs: Sequence[ReportedRun]) -> dict[str, object]:
    """The ledger of all runs, and a balance of each selective run that has a baseline."""
    return {"rows": [*_preparations(runs), *(_training(run, runs) for run in runs)], "break_even": _balances(runs)}


def _training(run: ReportedRun, runs: Sequence[ReportedRun]) -> dict[str, object]:
    ends = {
        name: None if values is None or len(values) == 0 else float(values[-1]) for name, values in run.spent.items()
    }
    served = [other.name for other in runs if run.is_reference_of(other)]
    return {"run": run.name, "what": "training of the reference" if served else "training", **ends, "shared_by": served}


def _preparations(runs: Sequence[ReportedRun]) -> list[dict[str, object]]:
    """The training of the reference and the scoring, once for each scored corpus.

    A reference whose own run is among the runs is left to the row of that run.
    """
    rows = []
    corpora: dict[tuple[str, ...], list[ReportedRun]] = {}
    for run in runs:
        if run.before.corpus:
            corpora.setdefault(run.before.corpus, []).append(run)
    for readers in corpora.values():
        # A run that has just begun has no cost.json yet.
        first = next((run for run in readers if run.before.total("seconds") is not None), readers[0])
        stages = {"scoring": first.before.scoring}
        if not any(run.is_reference_of(first) for run in runs):
            stages = {"reference training": first.before.reference_training, **stages}
        for what, stage in stages.items():
            rows.append({"run": first.name, "what": what, **_stage(stage), "shared_by": [run.name for run in readers]})
    return rows


def _stage(stage: StageSpent) -> dict[str, object]:
    return {axis: getattr(stage, axis) for axis in AXES}


def _balances(runs: Sequence[ReportedRun]) -> list[dict[str, object]]:
    baseline = baseline_of(runs)
    places = [] if baseline is None else shared_places(baseline, runs)
    if baseline is None or not places:
        return []
    return [
        _balance(run, baseline, places[0]) for run in runs if run.is_selective and places[0] in run.metrics.validations
    ]


def _balance(run: ReportedRun, baseline: ReportedRun, place: str) -> dict[str, object]:
    """The balance of a run up to the loss that its baseline ended with: in GPU-hours where both know theirs, else in
    seconds."""
    loss = final_loss(baseline, place)
    own, others = reached(run, place, loss), reached(baseline, place, loss)

    def saved(axis: str) -> float | None:
        before, after = (None if one is None else one[axis] for one in (others, own))
        return None if before is None or after is None else before - after

    in_gpu_hours = saved("gpu_hours") is not None and run.before.total("gpu_hours") is not None
    axis = "gpu_hours" if in_gpu_hours else "seconds"
    gain, once = saved(axis), run.before.total(axis)
    count = once / gain if gain is not None and once is not None and gain > 0 else None
    return {
        "run": run.name,
        "baseline": baseline.name,
        "place": place,
        "saved_seconds_per_run": saved("seconds"),
        "saved_gpu_hours_per_run": saved("gpu_hours"),
        "spent_once_seconds": run.before.total("seconds"),
        "spent_once_gpu_hours": run.before.total("gpu_hours"),
        "runs": count,
        "is_known": own is None or (gain is not None and (gain <= 0 or once is not None)),
        "sentence": _sentence(run, baseline, place, reaches=own is not None, axis=axis, gain=gain, once=once),
    }


def _sentence(
    run: ReportedRun,
    baseline: ReportedRun,
    place: str,
    *,
    reaches: bool,
    axis: str,
    gain: float | None,
    once: float | None,
) -> str:
    goal = f"{baseline.name}'s last loss on {place}"
    if not reaches:
        return f"{run.name} has not reached {goal}{'' if run.is_complete else ' so far'}: it has saved nothing."
    if gain is None:
        return f"{run.name} reached {goal}; what it saved is not known, for the time of a run is not."
    if gain <= 0:
        return f"{run.name} reached {goal} {_amount(abs(gain), axis)} after {baseline.name} did: it has saved nothing."
    saves = f"{run.name} reached {goal} {_amount(gain, axis)} before {baseline.name} did"
    if once is None:
        return f"{saves}; what the reference and the scoring took is not known."
    if once == 0:
        return f"{saves}, and nothing had to be spent before it."
    runs = once / gain
    number = f"{runs:.1f}" if runs < 10 else f"{runs:,.0f}"
    return (
        f"{saves}. The reference and the scoring took {_amount(once, axis)}, once for all runs on this corpus: "
        f"as much as {number} such runs save."
    )


def _amount(value: float, axis: str) -> str:
    return f"{rounded(value, 2)} GPU-hours" if axis == "gpu_hours" else duration(value)
