"""What a scoring job has found and what it took, from what was noted of its parts."""

import math
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import accumulate, groupby

import numpy as np
import torch

from megaslm import __version__
from megaslm.config.schema import Split
from megaslm.data.dataset.dataset_facts import perplexity
from megaslm.data.dataset.score_summary import (
    LOSS_BIN_EDGES,
    DeviceScores,
    DocumentLoss,
    DomainScores,
    PartScores,
    ScoredBy,
    ScoreSummary,
)
from megaslm.engine.device_name import device_name
from megaslm.engine.peak_flops import peak_flops
from megaslm.model.precision import ChosenPrecision
from megaslm.scoring.loss_statistics import MOST_DOCUMENTS

# Clocks of two kinds, and what lies between two rows that a process has scored.
_CLOSE_SECONDS = 1.0


def scored_by(rank: int, device: torch.device, targets: int, rank_seconds: float, start_seconds: float) -> ScoredBy:
    """This process at the end of rows that took it `rank_seconds`, begun `start_seconds` after its last."""
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
    )


def joined(by: Iterable[ScoredBy]) -> tuple[ScoredBy, ...]:
    """The same processes, each named once where it scored one range of rows after the other."""
    known: list[ScoredBy] = []
    for each in sorted(by, key=lambda each: (each.host, each.rank, each.started)):
        last = known[-1] if known else None
        if last is not None and (last.host, last.rank, last.device) == (each.host, each.rank, each.device):
            seconds = (each.started - last.started).total_seconds()
            # Jobs of an array on one host all have a rank 0: those that overlap are several.
            if abs(seconds - last.rank_seconds) <= _CLOSE_SECONDS:
                update = {"rank_seconds": seconds + each.rank_seconds, "targets": last.targets + each.targets}
                known[-1] = last.model_copy(update=update)
                continue
        known.append(each)
    return tuple(known)


def summarise(parts: Sequence[PartScores], forward_flops_per_token: float, precision: ChosenPrecision) -> ScoreSummary:
    """The summary of a dataset, from all its parts, domain by domain and in the order of their rows.

    `precision` is the arithmetic of the forward pass, on which the devices' peak depends.
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
            _domain_scores(split, domain, list(of_domain))
            for (split, domain), of_domain in groupby(parts, key=lambda part: (part.split, part.domain))
        ),
        parts=tuple(parts),
    )


def quantile(histogram: Sequence[int], share: float) -> float:
    """The loss in nats below which `share` of a histogram's targets are, as if those of a bin lay evenly in it.

    Of the last bin, which has no upper edge, it is the lower one.
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


def _domain_scores(split: Split, domain: str, parts: Sequence[PartScores]) -> DomainScores:
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
        median=quantile(histogram, 0.5),
        p95=quantile(histogram, 0.95),
        histogram=histogram,
        worst=_first(_placed(first_rows, [each.worst for each in statistics]), by=lambda loss: -loss.mean_loss),
        best=_first(_placed(first_rows, [each.best for each in statistics]), by=lambda loss: loss.mean_loss),
    )


def _placed(first_rows: Sequence[int], of_parts: Sequence[tuple[DocumentLoss, ...]]) -> Iterator[DocumentLoss]:
    """Documents of parts, with rows counted over the domain; each part is given with its first row there."""
    for first_row, documents in zip(first_rows, of_parts, strict=True):
        for document in documents:
            yield document.model_copy(update={"row": first_row + document.row})


def _first(documents: Iterable[DocumentLoss], *, by: Callable[[DocumentLoss], float]) -> tuple[DocumentLoss, ...]:
    """Those that come first; of equal ones, as Python sorts, those that did so before."""
    return tuple(sorted(documents, key=by)[:MOST_DOCUMENTS])
