"""What a scoring job notes of each part, and what it writes beside the rows in the end: scores.json and cost.json."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError, model_validator

from megaslm.data.dataset.manifest import COST, SCORES, Manifest, Reference
from megaslm.data.dataset.score_summary import PartScores, PartStatistics, ScoredBy, parse_scores, scored_by_one
from megaslm.errors import DataError
from megaslm.model.flops import forward_flops_per_token
from megaslm.model.folder import check_model_folder
from megaslm.model.precision import ChosenPrecision
from megaslm.model.windows import windows_of
from megaslm.scoring.derivation import PartOutcome
from megaslm.scoring.derivation_plan import SourcePart, source_parts
from megaslm.scoring.summary import summarise


class ScoredPart(PartOutcome):
    """A part that is scored."""

    statistics: PartStatistics
    """Of its losses."""
    by: tuple[ScoredBy, ...]
    """Who computed them."""

    @model_validator(mode="before")
    @classmethod
    def _scored_by_one(cls, values: object) -> object:
        return scored_by_one(values)


def known_parts(manifest: Manifest, beside: Callable[[str], bytes | None]) -> Mapping[str, ScoredPart]:
    """What was noted of the parts of a scored dataset, by their names, as its scores.json has kept it.

    Raises DataError where it has none, or one of other parts.
    """
    content = beside(SCORES)
    parts = () if content is None else parse_scores(content, SCORES).parts
    # More parts than the manifest's are there where a kill came before the manifest that was to list them.
    noted = {(scores.split, scores.domain, scores.part): scores for scores in parts}
    known: dict[str, ScoredPart] = {}
    for item in source_parts(manifest):
        scores = noted.get((item.split, item.domain, item.part.name))
        if scores is None or scores.rows != item.part.rows:
            raise DataError(
                f"the output's {SCORES} does not tell who scored {item.path}, so that no parts can be added; score "
                "into another output"
            )
        known[item.name] = ScoredPart(part=item.part, statistics=scores.statistics, by=scores.by)
    return known


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
            tokens_per_second=scored.statistics.targets / sum(by.rank_seconds for by in scored.by),
        )
        for item, scored in outcomes
    ]
    flops = _flops_per_target(record, manifest.seq_len, reference)
    summary = summarise(parts, flops, cast(ChosenPrecision, record.precision))
    cost = _cost([by for _, scored in outcomes for by in scored.by], reference)
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
    training = _training_cost(reference / COST)
    return cost if training is None else cost | {"reference_training": training}


def _training_cost(path: Path) -> dict[str, object] | None:
    """What `megaslm export` has left beside the model; null where nothing is, or a file of somebody else's."""
    if not path.is_file():
        return None
    try:
        return _ExportedCost.model_validate_json(path.read_bytes()).training
    except ValidationError:
        return None


class _ExportedCost(BaseModel):
    training: dict[str, object]


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
