"""The notes of a scoring job on each part, and its files beside the rows: scores.json and cost.json."""

import json
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from importlib.metadata import version
from itertools import accumulate, groupby
from operator import add
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ValidationError, model_validator

from megaslm import __version__
from megaslm.config.section import Split
from megaslm.dataset.loss_counts import LossCounts
from megaslm.dataset.manifest import COST, SCORES, Manifest, Reference
from megaslm.dataset.score_summary import (
    LOSS_BIN_EDGES,
    DeviceScores,
    DocumentLoss,
    DomainScores,
    PartScores,
    PartStatistics,
    ScoredBy,
    ScoreSummary,
    parse_scores,
    perplexity,
    scored_by_one,
)
from megaslm.errors import DataError
from megaslm.model.flops import device_name, peak_flops
from megaslm.model.folder import check_model_folder
from megaslm.model.forward_flops import forward_flops_per_token
from megaslm.model.load import ChosenPrecision
from megaslm.model.reference_model import windows_of
from megaslm.scoring.derivation import PartOutcome
from megaslm.scoring.derivation_plan import SourcePart, source_parts
from megaslm.scoring.loss_statistics import MOST_DOCUMENTS

# Tolerance for two kinds of clocks, and for the time between two ranges of one process.
_CLOSE_SECONDS = 1.0


def scored_by(
    rank: int,
    device: torch.device,
    targets: int,
    rank_seconds: float,
    start_seconds: float,
    read_tokens: int | None = None,
) -> ScoredBy:
    """The record of this process after rows that took `rank_seconds`, started `start_seconds` after its last ones."""
    return ScoredBy(
        host=socket.gethostname(),
        rank=rank,
        device=device_name(device),
        device_type=device.type,
        threads=torch.get_num_threads(),
        megaslm_version=__version__,
        torch_version=str(torch.__version__),
        transformers_version=version("transformers"),
        started=datetime.now(UTC) - timedelta(seconds=rank_seconds),
        rank_seconds=rank_seconds,
        start_seconds=start_seconds,
        targets=targets,
        read_tokens=read_tokens,
    )


def joined(by: Iterable[ScoredBy]) -> tuple[ScoredBy, ...]:
    """The same processes. One that scored several ranges in a row is listed once."""
    known: list[ScoredBy] = []
    for each in sorted(by, key=lambda each: (each.host, each.rank, each.started)):
        last = known[-1] if known else None
        if last is not None and (last.host, last.rank, last.device) == (each.host, each.rank, each.device):
            seconds = (each.started - last.started).total_seconds()
            # Jobs of an array on one host all have a rank 0. Records that overlap in time are different processes.
            if abs(seconds - last.rank_seconds) <= _CLOSE_SECONDS:
                update = {"rank_seconds": seconds + each.rank_seconds, "targets": last.targets + each.targets}
                if last.read_tokens is not None and each.read_tokens is not None:
                    update["read_tokens"] = last.read_tokens + each.read_tokens
                known[-1] = last.model_copy(update=update)
                continue
        known.append(each)
    return tuple(known)


def summarise(
    parts: Sequence[PartScores],
    forward_flops_per_token: float,
    precision: ChosenPrecision,
    earlier: ScoreSummary | None = None,
) -> ScoreSummary:
    """The summary of a dataset, from all its parts, domain by domain and in the order of their rows.

    `precision` is the precision of the forward pass. The devices' peak depends on it. `earlier` is the summary of the
    same dataset when it had fewer parts: it has the loss counts of these.
    """
    devices = tuple(
        _device_scores(device, parts, forward_flops_per_token, precision)
        for device in sorted({by.device for part in parts for by in part.by})
    )
    everyone = [by for part in parts for by in part.by]
    targets = sum(part.statistics.targets for part in parts)
    rank_seconds = sum(by.rank_seconds for by in everyone)
    return ScoreSummary(
        targets=targets,
        rank_seconds=rank_seconds,
        gpu_hours=sum(by.rank_seconds for by in everyone if by.device_type == "cuda") / 3600,
        ranks=_ranks(everyone),
        tokens_per_second_per_rank=targets / rank_seconds,
        forward_flops_per_token=forward_flops_per_token,
        mfu=_model_flops_utilisation(everyone, forward_flops_per_token, precision),
        bin_edges=LOSS_BIN_EDGES,
        devices=devices,
        domains=tuple(
            _domain_scores(split, domain, list(of_domain), earlier)
            for (split, domain), of_domain in groupby(parts, key=lambda part: (part.split, part.domain))
        ),
        parts=tuple(_without_counts(part) for part in parts),
    )


def quantile(histogram: Sequence[int], share: float) -> float:
    """The loss in nats below which `share` of a histogram's targets are, interpolated linearly within a bin.

    In the last bin, which has no upper edge, it is the lower edge.
    """
    edges = (0.0, *LOSS_BIN_EDGES, LOSS_BIN_EDGES[-1])
    below = (0, *accumulate(histogram))
    return float(np.interp(share * below[-1], below, edges))


def _device_scores(
    device: str, parts: Sequence[PartScores], forward_flops_per_token: float, precision: ChosenPrecision
) -> DeviceScores:
    by = [each for part in parts for each in part.by if each.device == device]
    targets, rank_seconds = sum(each.targets for each in by), sum(each.rank_seconds for each in by)
    return DeviceScores(
        device=device,
        hosts=len({each.host for each in by}),
        ranks=_ranks(by),
        parts=sum(any(each.device == device for each in part.by) for part in parts),
        targets=targets,
        rank_seconds=rank_seconds,
        tokens_per_second_per_rank=targets / rank_seconds,
        mfu=_model_flops_utilisation(by, forward_flops_per_token, precision),
    )


def _model_flops_utilisation(
    by: Iterable[ScoredBy], forward_flops_per_token: float, precision: ChosenPrecision
) -> float | None:
    done = possible = 0.0
    for each in by:
        peak = peak_flops(each.device, precision)
        if peak is None:
            return None
        done += each.targets * forward_flops_per_token
        possible += each.rank_seconds * peak
    return done / possible


def _ranks(by: Iterable[ScoredBy]) -> int:
    return len({(each.host, each.rank) for each in by})


def _without_counts(part: PartScores) -> PartScores:
    """The scores as scores.json has them. The counts of thousands of parts would fill it."""
    return part.model_copy(update={"statistics": part.statistics.model_copy(update={"loss_counts": None})})


def _loss_counts(
    split: Split, domain: str, parts: Sequence[PartScores], earlier: ScoreSummary | None
) -> LossCounts | None:
    """The counts of all parts: those of `earlier`, and those in the notes of the other parts. None if some are lost."""
    known = {part.part for part in earlier.parts if (part.split, part.domain) == (split, domain)} if earlier else set()
    new = [part.statistics.loss_counts for part in parts if part.part not in known]
    texts = [*new, earlier.of_domain(split, domain).loss_counts] if earlier and known else new
    if None in texts or not known <= {part.part for part in parts}:
        return None
    return reduce(add, [LossCounts.parse(text) for text in texts if text is not None])


def _domain_scores(
    split: Split, domain: str, parts: Sequence[PartScores], earlier: ScoreSummary | None
) -> DomainScores:
    counts = _loss_counts(split, domain, parts, earlier)
    statistics = [part.statistics for part in parts]
    targets = sum(each.targets for each in statistics)
    mean = math.fsum(each.loss_sum for each in statistics) / targets
    histogram = tuple(map(sum, zip(*(each.histogram for each in statistics), strict=True)))
    first_rows = (0, *accumulate(part.rows for part in parts[:-1]))
    return DomainScores(
        split=split,
        domain=domain,
        targets=targets,
        mean=mean,
        perplexity=perplexity(mean),
        median=quantile(histogram, 0.5) if counts is None else counts.quantile(0.5),
        p95=quantile(histogram, 0.95) if counts is None else counts.quantile(0.95),
        loss_counts=None if counts is None else counts.text(),
        histogram=histogram,
        worst=_first(_placed(first_rows, [each.worst for each in statistics]), by=lambda loss: -loss.mean_loss),
        best=_first(_placed(first_rows, [each.best for each in statistics]), by=lambda loss: loss.mean_loss),
    )


def _placed(first_rows: Sequence[int], of_parts: Sequence[tuple[DocumentLoss, ...]]) -> Iterator[DocumentLoss]:
    """Documents of parts, with rows counted over the domain. `first_rows` are the parts' first rows in the domain."""
    for first_row, documents in zip(first_rows, of_parts, strict=True):
        for document in documents:
            yield document.model_copy(update={"row": first_row + document.row})


def _first(documents: Iterable[DocumentLoss], *, by: Callable[[DocumentLoss], float]) -> tuple[DocumentLoss, ...]:
    """The first documents by `by`. The sort is stable: ties keep their order."""
    return tuple(sorted(documents, key=by)[:MOST_DOCUMENTS])


class ScoredPart(PartOutcome):
    """A scored part."""

    statistics: PartStatistics
    """Statistics of its losses."""
    by: tuple[ScoredBy, ...]
    """The processes that computed them."""

    @model_validator(mode="before")
    @classmethod
    def _scored_by_one(cls, values: object) -> object:
        return scored_by_one(values)


def known_parts(manifest: Manifest, beside: Callable[[str], bytes | None]) -> Mapping[str, ScoredPart]:
    """The notes of a scored dataset's parts, by part name, from its scores.json.

    Raises DataError where scores.json is missing, or describes other parts.
    """
    content = beside(SCORES)
    parts = () if content is None else parse_scores(content, SCORES).parts
    # scores.json may list more parts than the manifest, if a kill came before the new manifest.
    noted = {(scores.split, scores.domain, scores.part): scores for scores in parts}
    known: dict[str, ScoredPart] = {}
    for item in source_parts(manifest):
        scores = noted.get((item.split, item.domain, item.part.name))
        if scores is None or scores.rows != item.part.rows:
            raise DataError(
                f"the output's {SCORES} does not say which processes scored {item.path}, so no parts can be added; "
                "score into another output"
            )
        known[item.name] = ScoredPart(part=item.part, statistics=scores.statistics, by=scores.by)
    return known


def reports(
    outcomes: Sequence[tuple[SourcePart, ScoredPart]], manifest: Manifest, reference: Path, earlier: bytes | None
) -> dict[str, str]:
    """The files beside the rows, by name. `earlier` is the scores.json of the output before it gets more parts."""
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
    flops = _flops_per_target(record, manifest.seq_len, reference, parts)
    before = None if earlier is None else parse_scores(earlier, f"the output's {SCORES}")
    summary = summarise(parts, flops, cast(ChosenPrecision, record.precision), before)
    cost = _cost([by for _, scored in outcomes for by in scored.by], reference)
    return {SCORES: summary.model_dump_json(indent=1) + "\n", COST: json.dumps(cost, indent=1) + "\n"}


def with_cost(
    beside: Mapping[str, str], outcomes: Sequence[tuple[SourcePart, ScoredPart]], reference: Path
) -> dict[str, str]:
    """The files beside the rows of a dataset that gets the losses of a further reference: its cost is added."""
    before = json.loads(beside.get(COST, "{}"))
    added = _cost([by for _, scored in outcomes for by in scored.by], reference)
    total = {stage: _sum(before.get(stage), added.get(stage)) for stage in {**before, **added}}
    return {**beside, COST: json.dumps(total, indent=1) + "\n"}


def _sum(one: dict[str, Any] | None, other: Any) -> dict[str, Any]:
    """The sums of the numbers that both costs state; one of them where the other is None."""
    if one is None or other is None:
        return one or other or {}
    numbers = (name for name in one if isinstance(one[name], int | float) and isinstance(other.get(name), int | float))
    return {name: one[name] + other[name] for name in numbers}


def _flops_per_target(record: Reference, seq_len: int, reference: Path, parts: Sequence[PartScores]) -> float:
    """FLOPs per target. Overlapping windows read some tokens several times, and an aligned reference reads its own."""
    per_token = forward_flops_per_token(check_model_folder(reference), record.window)
    if record.aligned:
        everyone = [by for part in parts for by in part.by]
        return per_token * sum(by.read_tokens or 0 for by in everyone) / max(1, sum(by.targets for by in everyone))
    read_tokens = sum(stop - start for start, stop, _ in windows_of(seq_len, record.window, record.stride))
    return per_token * read_tokens / seq_len


def _cost(by: Sequence[ScoredBy], reference: Path) -> dict[str, object]:
    """The cost of scoring, including loading the model, and of training the reference, if known."""
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
    """The cost file that `megaslm export` wrote beside the model. None if it is missing or of another program."""
    if not path.is_file():
        return None
    try:
        return _ExportedCost.model_validate_json(path.read_bytes()).training
    except ValidationError:
        return None


class _ExportedCost(BaseModel):
    training: dict[str, object]


def _seconds_at_work(by: Iterable[ScoredBy]) -> float:
    """The time during which at least one rank was working. The parts may come from many ranks or many days."""
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
