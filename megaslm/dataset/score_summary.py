"""DATASET/scores.json: the distribution of a scored dataset's losses, and the processes that computed them."""

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from megaslm.config.section import Split
from megaslm.dataset.loss_counts import LossCounts
from megaslm.dataset.manifest import SCORES
from megaslm.errors import DataError
from megaslm.files import first_problem

# Four bins per octave: small losses, the most frequent ones, are resolved as finely as large ones. Losses are float16.
LOSS_BIN_EDGES = tuple(float(np.float16(2.0 ** (step / 4))) for step in range(-32, 21))
"""Edges of the histogram's bins, in nats, from 1/256 to 32. The first bin goes from 0 to the first edge, the last bin
has no upper edge. A loss equal to an edge belongs to the bin above it."""
LOSS_BIN_WIDTH = 2.0**0.25 - 1
"""The width of a bin as a share of its lower edge."""
_LARGEST_EXPONENT = 700


def _are_counts(text: str) -> str:
    LossCounts.parse(text)
    return text


CountsText = Annotated[str, AfterValidator(_are_counts)]
"""A text that `megaslm.dataset.loss_counts.LossCounts.parse` reads."""


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
    )


class DocumentLoss(_Record):
    """A document and its reference loss."""

    row: int
    """The row in which it begins, counted in the part or, in a domain's scores, in the domain."""
    token: int
    """The index of its first token in that row."""
    targets: int
    """Its valid targets."""
    mean_loss: float
    """Mean loss of these targets, in nats."""


class PartStatistics(_Record):
    """The losses of one part."""

    targets: int
    """Its valid targets."""
    loss_sum: float
    """The sum of their stored losses, in nats: exact, rounded once."""
    loss_counts: CountsText | None = None
    """`LossCounts.text` of its losses in a scoring job's notes. In scores.json null: the domains have it."""
    histogram: tuple[int, ...]
    """Targets in each bin; see `LOSS_BIN_EDGES`."""
    worst: tuple[DocumentLoss, ...]
    """The documents of largest mean loss, the largest first. Ties go to the earlier document."""
    best: tuple[DocumentLoss, ...]
    """The documents of smallest mean loss, likewise."""


class ScoredBy(_Record):
    """A process that scored consecutive rows of a part, and its device."""

    host: str
    rank: int
    """Its rank in its job."""
    device: str
    """Name of the GPU, or of the processor if there is none."""
    device_type: str
    """`cuda` or `cpu`."""
    threads: int
    """Threads of torch."""
    megaslm_version: str
    torch_version: str
    transformers_version: str
    started: datetime
    """When it began with these rows, in UTC."""
    rank_seconds: float
    """Time that the process spent on them."""
    start_seconds: float
    """Time before that, since its start or its last rows: loading the model, waiting, joining."""
    targets: int = 0
    """Their valid targets."""
    read_tokens: int | None = None
    """Tokens that an aligned reference read for them; null where the windows of the rows tell."""


def scored_by_one(values: object) -> object:
    """Converts a part's scores of earlier builds, in which one process scored the whole part."""
    if isinstance(values, dict) and isinstance(values.get("by"), dict):
        return values | {"by": [{"targets": values["statistics"]["targets"], **values["by"]}]}
    return values


class PartScores(_Record):
    """One part of the dataset."""

    split: Split
    domain: str
    part: str
    rows: int
    statistics: PartStatistics
    by: tuple[ScoredBy, ...]
    """The processes that scored its rows."""
    tokens_per_second: float
    """Valid targets divided by the sum of `rank_seconds`."""

    @model_validator(mode="before")
    @classmethod
    def _scored_by_one(cls, values: object) -> object:
        return scored_by_one(values)

    @property
    def rank_seconds(self) -> float:
        """Time that all processes spent on its rows."""
        return sum(by.rank_seconds for by in self.by)


class DomainScores(_Record):
    """One domain of one split."""

    split: Split
    domain: str
    targets: int
    """Valid targets over all parts."""
    mean: float
    """Mean of their losses, in nats."""
    perplexity: float
    """exp(mean)."""
    median: float
    """In nats: exact, or interpolated within a bin of the histogram if `loss_counts` is null."""
    p95: float
    """The 95th percentile in nats, likewise."""
    loss_counts: CountsText | None = None
    """`LossCounts.text` of the losses. Null if an earlier build scored some of the parts."""
    histogram: tuple[int, ...]
    """Targets in each bin."""
    worst: tuple[DocumentLoss, ...]
    """As in `PartStatistics`, over all parts."""
    best: tuple[DocumentLoss, ...]
    """Likewise."""


class DeviceScores(_Record):
    """The work of all devices of one name."""

    device: str
    hosts: int
    """Machines that have it."""
    ranks: int
    """Processes that ran on it, told apart by host and rank."""
    parts: int
    """Parts of which they scored rows."""
    targets: int
    """Valid targets of these rows."""
    rank_seconds: float
    """Time that they spent on these rows."""
    tokens_per_second_per_rank: float
    """`targets` divided by `rank_seconds`."""
    mfu: float | None
    """Model FLOP/s divided by the device's peak; null if the peak is not known."""


class ScoreSummary(_Record):
    """The losses of a scored dataset, and the cost of computing them."""

    targets: int
    """Valid targets over all parts."""
    rank_seconds: float
    """Time that all ranks spent on their parts, without loading the model and waiting for one another."""
    gpu_hours: float
    """The same for ranks with a GPU, in hours."""
    ranks: int
    """Processes that took part, told apart by host and rank."""
    tokens_per_second_per_rank: float
    """`targets` divided by `rank_seconds`."""
    forward_flops_per_token: float
    """FLOPs of the reference's forward pass per token; see `megaslm.model.forward_flops`."""
    mfu: float | None
    """Model FLOP/s divided by the devices' peak; null if a peak is not known."""
    bin_edges: tuple[float, ...]
    """`LOSS_BIN_EDGES`, for reading the histograms."""
    devices: tuple[DeviceScores, ...]
    """By name."""
    domains: tuple[DomainScores, ...]
    """In the manifest's order."""
    parts: tuple[PartScores, ...]
    """In the order of their rows."""

    def of_domain(self, split: Split, domain: str) -> DomainScores:
        """The scores of one domain of one split. They must exist."""
        return next(scores for scores in self.domains if (scores.split, scores.domain) == (split, domain))


def read_scores(dataset: Path) -> ScoreSummary | None:
    """The summary in a scored dataset, None if it has none. Raises DataError where the file is not a summary."""
    path = dataset / SCORES
    return parse_scores(path.read_bytes(), str(path)) if path.is_file() else None


def parse_scores(content: bytes, path: str) -> ScoreSummary:
    """Parses `content`, read from `path`, as a summary. Raises DataError where it is not one."""
    try:
        return ScoreSummary.model_validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{path} is not the summary of a scored dataset; remove this file (the rows do not need it), or score the "
            f"dataset again ({first_problem(error)})"
        ) from error


def perplexity(mean_loss: float) -> float:
    """exp of a mean loss in nats; infinite if that overflows."""
    return math.exp(mean_loss) if mean_loss < _LARGEST_EXPONENT else math.inf
