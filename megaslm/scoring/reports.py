"""What a scoring job notes of each part, and what it writes beside the rows in the end: scores.json and cost.json."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast

from megaslm.data.dataset.manifest import COST, SCORES, Manifest, Reference
from megaslm.data.dataset.score_summary import PartScores, PartStatistics, ScoredBy, ScoreSummary
from megaslm.errors import DataError
from megaslm.model.flops import forward_flops_per_token
from megaslm.model.load import check_model_folder
from megaslm.model.precision import ChosenPrecision
from megaslm.model.windows import windows_of
from megaslm.scoring.derivation import PartOutcome
from megaslm.scoring.derivation_plan import SourcePart, source_parts
from megaslm.scoring.summary import summarise


class ScoredPart(PartOutcome):
    """A part that is scored."""

    statistics: PartStatistics
    """Of its losses."""
    by: ScoredBy
    """Who computed them."""


def known_parts(manifest: Manifest, beside: Callable[[str], bytes | None]) -> Mapping[str, ScoredPart]:
    """What was noted of the parts of a scored dataset, by their names, as its scores.json has kept it.

    Raises DataError where it has none, or one of other parts.
    """
    content = beside(SCORES)
    summary = None if content is None else ScoreSummary.model_validate_json(content)
    parts = list(source_parts(manifest))
    noted = [] if summary is None else [(each.split, each.domain, each.part) for each in summary.parts]
    if summary is None or noted != [(item.split, item.domain, item.part.name) for item in parts]:
        raise DataError(f"{manifest.name}: the scored dataset has no {SCORES} of its parts; score into another output")
    return {
        item.name: ScoredPart(part=item.part, statistics=scores.statistics, by=scores.by)
        for item, scores in zip(parts, summary.parts, strict=True)
    }


def reports(outcomes: Sequence[tuple[SourcePart, ScoredPart]], manifest: Manifest, reference: Path) -> dict[str, str]:
    """The files beside the rows, by name."""
    record = cast(Reference, manifest.reference)
    parts = [
        PartScores(
            split=item.split,
            domain=item.domain,
            part=item.part.name,
            rows=item.part.rows,
            statistics=scored.statistics,
            by=scored.by,
            tokens_per_second=scored.statistics.targets / scored.by.rank_seconds,
        )
        for item, scored in outcomes
    ]
    flops = _flops_per_target(record, manifest.seq_len, reference)
    summary = summarise(parts, flops, cast(ChosenPrecision, record.precision))
    cost = _cost([scored.by for _, scored in outcomes], reference)
    return {SCORES: summary.model_dump_json(indent=1) + "\n", COST: json.dumps(cost, indent=1) + "\n"}


def _flops_per_target(record: Reference, seq_len: int, reference: Path) -> float:
    """Windows that overlap read some of a row's tokens several times."""
    read_tokens = sum(stop - start for start, stop, _ in windows_of(seq_len, record.window, record.stride))
    return forward_flops_per_token(check_model_folder(reference), record.window) * read_tokens / seq_len


def _cost(by: Sequence[ScoredBy], reference: Path) -> dict[str, object]:
    """What scoring took, loading the model included, and what the reference's own training took where that is known."""
    seconds = [each.start_seconds + each.rank_seconds for each in by]
    on_gpus = sum(taken for each, taken in zip(by, seconds, strict=True) if each.device_type == "cuda")
    cost: dict[str, object] = {
        "scoring": {
            "seconds": _seconds_at_work(by),
            "rank_seconds": sum(seconds),
            "gpu_hours": on_gpus / 3600,
        }
    }
    training = reference / COST
    if training.is_file():
        cost["reference_training"] = json.loads(training.read_text(encoding="utf-8"))["training"]
    return cost


def _seconds_at_work(by: Iterable[ScoredBy]) -> float:
    """How long at least one rank was at work: parts may have been scored by many ranks, or on many days."""
    total, until = 0.0, None
    spans = sorted(
        (each.started - timedelta(seconds=each.start_seconds), each.started + timedelta(seconds=each.rank_seconds))
        for each in by
    )
    for start, stop in spans:
        begin = start if until is None else max(start, until)
        total += max(0.0, (stop - begin).total_seconds())
        until = stop if until is None else max(until, stop)
    return total
