"""How the losses of a scored dataset are distributed and who computed them: DATASET/scores.json."""

import math
from datetime import datetime
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from megaslm.config.schema import Split
from megaslm.dataset.manifest import SCORES
from megaslm.errors import DataError

# Four bins an octave: as fine where most losses are, near 0, as among the large ones. Losses are stored as float16.
LOSS_BIN_EDGES = tuple(float(np.float16(2.0 ** (step / 4))) for step in range(-32, 21))
"""Where the bins of a histogram meet, in nats, from 1/256 to 32. Before the first edge lies a bin for all that is
smaller, from 0 on; the last bin has no upper edge. A loss that is an edge belongs to the bin above it."""
_LARGEST_EXPONENT = 700


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
    )


class DocumentLoss(_Record):
    """One document and how hard the reference finds it."""

    row: int
    """The row in which it begins: of the part or, in a domain's scores, of the domain."""
    token: int
    """The place of its first token in that row."""
    targets: int
    """Its valid targets."""
    mean_loss: float
    """Of these, in nats."""


class PartStatistics(_Record):
    """The losses of one part."""

    targets: int
    """Its valid targets."""
    loss_sum: float
    """Of their losses as stored, in nats: the exact sum, rounded once."""
    histogram: tuple[int, ...]
    """Targets in each bin; see `LOSS_BIN_EDGES`."""
    worst: tuple[DocumentLoss, ...]
    """The documents of largest mean loss, that first; of equal ones the earlier."""
    best: tuple[DocumentLoss, ...]
    """Those of smallest mean loss, likewise."""


class ScoredBy(_Record):
    """A process that scored rows of a part one after the other, and what it ran on."""

    host: str
    """Name of the machine."""
    rank: int
    """Among the processes of its job."""
    device: str
    """What the GPU or else the processor calls itself."""
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
    """What the process spent on them."""
    start_seconds: float
    """What it spent before, since its start or its last rows: loading the model, waiting, joining."""
    targets: int = 0
    """Their valid targets."""


def scored_by_one(values: object) -> object:
    """What was read of a part's scores; earlier builds gave a part to one process, and named that."""
    if isinstance(values, dict) and isinstance(values.get("by"), dict):
        return values | {"by": [{"targets": values["statistics"]["targets"], **values["by"]}]}
    return values


class PartScores(_Record):
    """One part of the dataset."""

    split: Split
    domain: str
    part: str
    """Its name."""
    rows: int
    statistics: PartStatistics
    by: tuple[ScoredBy, ...]
    """Who scored its rows."""
    tokens_per_second: float
    """Valid targets by the sum of `rank_seconds`."""

    @model_validator(mode="before")
    @classmethod
    def _scored_by_one(cls, values: object) -> object:
        return scored_by_one(values)

    @property
    def rank_seconds(self) -> float:
        """What all processes spent on its rows."""
        return sum(by.rank_seconds for by in self.by)


class DomainScores(_Record):
    """One domain of one split."""

    split: Split
    domain: str
    targets: int
    """Valid targets over all parts."""
    mean: float
    """Of their losses, in nats."""
    perplexity: float
    """exp(mean)."""
    median: float
    """In nats, interpolated within a bin of the histogram."""
    p95: float
    """In nats, likewise; one target in twenty has more."""
    histogram: tuple[int, ...]
    """Targets in each bin."""
    worst: tuple[DocumentLoss, ...]
    """As in `PartStatistics`, over all parts."""
    best: tuple[DocumentLoss, ...]
    """Likewise."""


class DeviceScores(_Record):
    """The work of all devices of one name."""

    device: str
    """The name."""
    hosts: int
    """Machines that have it."""
    ranks: int
    """Processes that ran on it, told apart by host and rank."""
    parts: int
    """Of how many they scored rows."""
    targets: int
    """Valid targets of these rows."""
    rank_seconds: float
    """What they spent on them."""
    tokens_per_second_per_rank: float
    """`targets` by `rank_seconds`."""
    mfu: float | None
    """Model FLOP/s by the device's peak; null where the peak is not known."""


class ScoreSummary(_Record):
    """What is known of a scored dataset's losses, and of their making."""

    targets: int
    """Valid targets over all parts."""
    rank_seconds: float
    """What all ranks spent on their parts; loading the model and waiting for one another is not in it."""
    gpu_hours: float
    """The same of ranks with a GPU, in hours."""
    ranks: int
    """Processes that took part, told apart by host and rank."""
    tokens_per_second_per_rank: float
    """`targets` by `rank_seconds`."""
    forward_flops_per_token: float
    """What the reference's forward pass takes; see `megaslm.model.flops`."""
    mfu: float | None
    """Model FLOP/s by the devices' peak; null where a peak is not known."""
    bin_edges: tuple[float, ...]
    """`LOSS_BIN_EDGES`, for whoever reads the histograms."""
    devices: tuple[DeviceScores, ...]
    """By name."""
    domains: tuple[DomainScores, ...]
    """In the manifest's order."""
    parts: tuple[PartScores, ...]
    """In the order of their rows."""

    def of_domain(self, split: Split, domain: str) -> DomainScores:
        """The scores of one domain of one split, which there must be."""
        return next(scores for scores in self.domains if (scores.split, scores.domain) == (split, domain))


def read_scores(dataset: Path) -> ScoreSummary | None:
    """The summary in a scored dataset; null where it has none. Raises DataError where the file is no summary."""
    path = dataset / SCORES
    return parse_scores(path.read_bytes(), str(path)) if path.is_file() else None


def parse_scores(content: bytes, path: str) -> ScoreSummary:
    """The summary that `content` spells; `path` is where it came from. Raises DataError where it is none."""
    try:
        return ScoreSummary.model_validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{path} is not the summary of a scored dataset; remove this file, which the rows do not need, or score "
            f"the dataset again: {error}"
        ) from error


def perplexity(mean_loss: float) -> float:
    """exp of a mean loss in nats; infinite where that is more than a number can hold."""
    return math.exp(mean_loss) if mean_loss < _LARGEST_EXPONENT else math.inf
