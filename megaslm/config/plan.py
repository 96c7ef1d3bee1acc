"""Rows, micro-steps, steps and parameters of a configuration on a number of ranks. Arithmetic only."""

import math
from dataclasses import dataclass
from functools import cached_property

from megaslm.config.schema import Architecture, RunConfig
from megaslm.errors import ConfigError

MOST_CANONICAL_NODES = 64
"""The order of rows is the same on any number of nodes that divides the canonical number."""


# A weight and Adam's two moments, 4 bytes each.
_CHECKPOINT_BYTES_PER_PARAMETER = 12


@dataclass(frozen=True)
class BatchPlan:
    """How one run's batches are divided over ranks and micro-steps."""

    world_size: int
    seq_len: int
    """Targets per row."""
    global_batch_rows: int
    """Rows per optimiser step, over all ranks."""
    rows_per_rank: int
    """Rows per optimiser step on each rank."""
    micro_batch_rows: int
    """Rows that go through the model at once: the largest divisor of `rows_per_rank` that the configuration allows."""
    micro_steps: int
    """Forward and backward passes per optimiser step."""
    total_steps: int
    """Optimiser steps of the whole run."""
    canonical_nodes: int
    """Parts into which the order of rows is divided; independent of the number of nodes."""

    @cached_property
    def tokens_per_step(self) -> int:
        """Targets per optimiser step."""
        return self.global_batch_rows * self.seq_len

    def steps_of(self, tokens: int) -> int:
        """Whole steps in an interval of `tokens` targets: rounded down, at least one."""
        return max(1, tokens // self.tokens_per_step)

    def is_due(self, every_tokens: int | None, step: int) -> bool:
        """Whether work that is due every so many targets is done after a step.

        It is done after the last step in any case. It is left out less than a tenth of an interval before that one.
        """
        if every_tokens is None or step == self.total_steps:
            return step == self.total_steps
        steps = self.steps_of(every_tokens)
        return step % steps == 0 and 10 * (self.total_steps - step) >= steps

    def times_due(self, every_tokens: int | None, *, after_step: int = 0) -> int:
        """How often such work is still done after a step."""
        if after_step >= self.total_steps:
            return 0
        if every_tokens is None:
            return 1
        steps = self.steps_of(every_tokens)
        multiples = range(after_step // steps * steps + steps, self.total_steps, steps)
        return sum(self.is_due(every_tokens, step) for step in multiples) + 1


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, by part."""

    embedding: int
    decoder: int
    """All decoder layers and the final norm."""
    head: int
    """The head's own matrix; 0 where it shares the embedding table."""

    @property
    def total(self) -> int:
        """All parameters; a shared one counts once."""
        return self.embedding + self.decoder + self.head


def plan_batches(config: RunConfig, world_size: int) -> BatchPlan:
    """Divide the run's batches over `world_size` ranks.

    Raises ConfigError where the rows do not divide evenly, or the run's length is known in epochs only.
    """
    seq_len = config.data.seq_len
    global_batch_rows = config.train.global_batch_tokens // seq_len
    rows_per_rank = divided_rows(config, world_size)
    micro_batch_rows = max(n for n in _divisors(rows_per_rank) if n <= config.train.micro_batch_rows)
    return BatchPlan(
        world_size=world_size,
        seq_len=seq_len,
        global_batch_rows=global_batch_rows,
        rows_per_rank=rows_per_rank,
        micro_batch_rows=micro_batch_rows,
        micro_steps=rows_per_rank // micro_batch_rows,
        total_steps=total_steps(config),
        canonical_nodes=math.gcd(MOST_CANONICAL_NODES, global_batch_rows),
    )


def total_steps(config: RunConfig) -> int:
    """Optimiser steps of the whole run: as many as fit into `train.total_tokens`, at least one.

    Raises ConfigError where the run's length is known in epochs only.
    """
    return max(1, config.train.length_tokens // config.train.global_batch_tokens)


def divided_rows(config: RunConfig, world_size: int) -> int:
    """Rows per optimiser step on each of `world_size` ranks. Raises ConfigError where they do not divide evenly."""
    seq_len = config.data.seq_len
    global_batch_rows = config.train.global_batch_tokens // seq_len
    if world_size < 1 or global_batch_rows % world_size:
        raise ConfigError(_uneven(global_batch_rows, world_size, seq_len))
    return global_batch_rows // world_size


def parameter_count(architecture: Architecture) -> ParameterCounts:
    """The exact number of parameters. llama and mistral have the same parameters, without biases."""
    width = architecture.hidden_size
    head_size = width // architecture.num_heads
    key_value_width = (architecture.num_kv_heads or architecture.num_heads) * head_size
    attention = 2 * width * width + 2 * width * key_value_width
    feed_forward = 3 * width * architecture.intermediate_size
    norms = 2 * width
    table = architecture.vocab_size * width
    return ParameterCounts(
        embedding=table,
        decoder=architecture.num_layers * (attention + feed_forward + norms) + width,
        head=0 if architecture.tie_embeddings else table,
    )


def checkpoint_bytes(parameters: int) -> int:
    """The size on disk of a checkpoint of a model with so many parameters."""
    return _CHECKPOINT_BYTES_PER_PARAMETER * parameters


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _uneven(rows: int, world_size: int, seq_len: int) -> str:
    if world_size < 1:
        return f"the world size is {world_size}; it must be at least 1"
    below = rows // world_size * world_size * seq_len
    above = (rows // world_size + 1) * world_size * seq_len
    batches = f"{below} or {above}" if below else f"{above}"
    world_sizes = ", ".join(str(n) for n in _divisors(rows))
    return (
        f"train.global_batch_tokens = {rows * seq_len} is {rows} rows of {seq_len}, "
        f"which do not divide by {world_size} ranks; use {world_sizes} ranks, or train.global_batch_tokens = {batches}"
    )
