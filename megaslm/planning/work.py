"""Time, money, disk and network of a run: arithmetic on its tokens and its model."""

from dataclasses import dataclass

from megaslm.config.operation import ZeroSection
from megaslm.config.plan import BatchPlan, checkpoint_bytes
from megaslm.config.retention import most_kept
from megaslm.config.schema import RunConfig
from megaslm.dataset.shards import RowFormat

DEFAULT_MFU = 0.3
"""Rho-1's hours on 32 H100 amount to 25% of the peak for 1.1B parameters and to 34% for 7B."""


@dataclass(frozen=True)
class Rate:
    """What the GPUs of a run do in a second."""

    gpus: int
    peak_flops: float
    """Of one GPU."""
    mfu: float
    """The share of the peak that the model's operations reach."""
    price: float | None
    """Of a GPU for an hour."""

    def work(self, tokens: int, flops_per_token: float) -> "Work":
        """The work of so many tokens."""
        per_second = self.gpus * self.peak_flops * self.mfu / flops_per_token
        gpu_hours = self.gpus * tokens / per_second / 3600
        return Work(
            tokens_per_second=per_second,
            hours=gpu_hours / self.gpus,
            gpu_hours=gpu_hours,
            money=None if self.price is None else self.price * gpu_hours,
        )


@dataclass(frozen=True)
class Work:
    """Time and money."""

    tokens_per_second: float
    """Of all GPUs together."""
    hours: float
    gpu_hours: float
    money: float | None
    """In the unit of the price."""


@dataclass(frozen=True)
class Disk:
    """Bytes on disk."""

    shards: int
    """Of the training rows, uncompressed, with the columns that the run reads."""
    checkpoint: int
    checkpoints: int
    """Of all checkpoints that lie there at once."""
    kept: int
    """How many these are."""


@dataclass(frozen=True)
class Network:
    """What a GPU receives from others."""

    bytes_per_step: int
    bytes_per_second: float | None
    """At which it takes as long as the computation; beside which it can hide. None where the speed is not known."""


# A dataset that is not there yet has as many of them per target as docs/scoring.md names.
_TOP_LOGITS = 16


def disk_of(config: RunConfig, plan: BatchPlan, parameters: int, vocab_size: int, tokens: int) -> Disk:
    """The disk that a run over so many different tokens needs."""
    slm, objective = config.slm, config.train.objective
    rows = RowFormat(
        plan.seq_len,
        vocab_size,
        scored=objective == "slm" and (slm.needs_ref_loss or slm.distills),
        entropy=objective == "slm" and slm.needs_ref_loss and slm.needs_ref_entropy,
        top_logits=_TOP_LOGITS if objective == "slm" and slm.distills else 0,
        target_mask=objective == "sft",
    )
    kept = most_kept(config, plan)
    return Disk(
        shards=-(-tokens // plan.seq_len) * rows.row_bytes,
        checkpoint=checkpoint_bytes(parameters),
        checkpoints=kept * checkpoint_bytes(parameters),
        kept=kept,
    )


def network_of(
    zero: ZeroSection, plan: BatchPlan, parameters: int, element_bytes: int, training: Work | None
) -> Network:
    """What a GPU receives in a step.

    Stage 3 gathers the weights for the forward pass, and again for the backward pass what it has not kept, and reduces
    gradients in each micro-step. Stage 2 reduces them in each micro-step, and gathers the weights once in a step.
    Stages 0 and 1 reduce gradients once in a step, in float32.
    """
    kept = min(parameters, zero.max_reuse_distance // 2)
    in_micro_step = {0: 0, 1: 0, 2: element_bytes * parameters, 3: element_bytes * (3 * parameters - kept)}
    at_the_end = {0: 8 * parameters, 1: (4 + element_bytes) * parameters, 2: element_bytes * parameters, 3: 0}
    whole = plan.micro_steps * in_micro_step[zero.stage] + at_the_end[zero.stage]
    received = whole * (plan.world_size - 1) // plan.world_size
    step_seconds = None if training is None else plan.tokens_per_step / training.tokens_per_second
    return Network(received, None if step_seconds is None else received / step_seconds)
