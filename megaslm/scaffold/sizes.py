"""Rows, batches, learning rates and sharding for a model and texts of given sizes. Arithmetic only."""

from dataclasses import dataclass
from typing import NamedTuple

from megaslm.config.schema import Recompute

_LARGE = 3e9
"""Parameters from which weights, gradients and optimiser states are divided (stage 3)."""
SMALL = 5e8
"""Parameters below which the paper has no model."""
LARGEST_BATCH_TOKENS = 2**20
"""The paper's batch."""
_STEPS_WANTED = 500
_ROWS_WANTED = 128
_SHORTEST_ROW, _ROW, _LONG_ROW = 64, 2048, 4096
_LEAST_ROWS = 8
"""Rows per step at least, so that up to eight ranks share them evenly."""
_STEPS_WITH_WARMUP = 10
_LEAST_DOCUMENTS = 20
"""Of a fifth of fewer documents, there is often none."""


@dataclass(frozen=True)
class RunSizes:
    """The sizes of one run."""

    batch_tokens: int
    warmup_tokens: int
    validation_tokens: int
    """Targets between two validations."""
    checkpoint_tokens: int
    """Targets between two checkpoints."""


@dataclass(frozen=True)
class ModelSizes:
    """The settings that follow from the size of the model."""

    micro_batch_rows: int
    keep_ratio: float
    zero_stage: int
    bucket_elements: int
    recompute: Recompute


class LearningRates(NamedTuple):
    """The highest learning rates."""

    lr: float
    """Of the runs on the corpus."""
    reference_lr: float


def row_length(parameters: int, positions: int, tokens: int) -> int:
    """Targets per row: a power of two that the model's positions hold, and that gives the smallest text some rows."""
    most = min(positions, _LONG_ROW if parameters >= _LARGE else _ROW)
    return _power_of_two(min(most, max(_SHORTEST_ROW, tokens // _ROWS_WANTED)))


def run_sizes(total_tokens: int, seq_len: int) -> RunSizes:
    """A batch of at most 1M targets that leaves a run some hundred steps; 1% warm-up, 20 validations, 5 checkpoints."""
    wanted = total_tokens // _STEPS_WANTED // seq_len
    rows = min(_power_of_two(max(_LEAST_ROWS, wanted)), max(_LEAST_ROWS, LARGEST_BATCH_TOKENS // seq_len))
    batch = rows * seq_len
    return RunSizes(
        batch_tokens=batch,
        # A run must be longer than its warm-up, and the text may be less than it seems.
        warmup_tokens=_whole(total_tokens // 100, batch) if total_tokens >= _STEPS_WITH_WARMUP * batch else 0,
        validation_tokens=_whole(total_tokens // 20, batch),
        checkpoint_tokens=_whole(total_tokens // 5, batch),
    )


def model_sizes(parameters: int, seq_len: int) -> ModelSizes:
    """The paper's keep ratios for models of its sizes; ours for smaller ones."""
    large, small = parameters >= _LARGE, parameters < SMALL
    tokens_at_once = 2**16 if small else 2**14
    return ModelSizes(
        micro_batch_rows=max(1, tokens_at_once // seq_len),
        keep_ratio=0.7 if large else 0.6,
        zero_stage=3 if large else 2,
        bucket_elements=min(200_000_000, max(1_000_000, parameters // 5)),
        recompute="full" if large else "none",
    )


def learning_rates(parameters: int, *, untrained: bool) -> LearningRates:
    """Of trained models the paper's at its sizes, and ours for smaller ones.

    Of new weights those by which TinyLlama (1.1B) and Llama (7B) were trained, and ours for smaller ones.
    """
    large, small = parameters >= _LARGE, parameters < SMALL
    if untrained:
        lr = 3e-4 if large else 1e-3 if small else 4e-4
        return LearningRates(lr, lr)
    return LearningRates(2e-5 if large else 2e-4 if small else 8e-5, 1e-5 if large else 1e-4 if small else 5e-5)


def heldout_fraction(documents: int) -> float:
    """The share of documents to hold out: some hundred of them where there are enough, 0 where there are too few."""
    if documents < _LEAST_DOCUMENTS:
        return 0
    return 0.01 if documents >= 5_000 else 0.05 if documents >= 200 else 0.2


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`."""
    return 1 << (number.bit_length() - 1)


def _whole(tokens: int, batch: int) -> int:
    """The nearest whole number of batches, at least one."""
    return max(1, round(tokens / batch)) * batch
