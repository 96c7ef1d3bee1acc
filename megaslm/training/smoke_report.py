"""The result of a smoke test, and the lines that tell it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megaslm.observe.display import counted, duration, gib, rounded, size

_FULL_MEMORY = 0.95
"""Rows differ in their documents and allocations: a run needs a little more than its first steps."""
_NEAR_CHANCE = 0.05
"""Share of the uniform loss. The first loss of new weights is within a few hundredths of it."""


class PeakMemory(NamedTuple):
    """The need of the rank that needed the most memory."""

    peak_bytes: int
    """What torch held of the GPU or, without GPUs, what was resident."""
    gpu_bytes: int | None
    """The memory of its GPU; None without GPUs."""
    rank: int


@dataclass(frozen=True)
class SmokeResult:
    """What smoke.json says."""

    run_dir: str
    """The run that was tested."""
    steps: int
    ranks: int
    total_steps: int
    """Of the whole run, as the following ones."""
    validations: int
    checkpoints: int
    checkpoints_kept: int
    """The most that lie on the disk at once, the one that is being written included."""
    losses: tuple[float, ...]
    """Mean losses of all valid targets, or of the selected ones where the others are not measured, in nats."""
    uniform_loss: float
    """The loss of a model that knows nothing: the logarithm of the vocabulary's size."""
    skipped_steps: int
    validation_losses: dict[str, float]
    """By SET/DOMAIN."""
    first_step_seconds: float
    step_seconds: float
    """Median of the other steps; the first one's where there is no other."""
    validation_seconds: float
    tokens_per_second: float
    peak_memory: PeakMemory
    checkpoint_bytes: int
    disk_free_bytes: int
    """After the checkpoint was removed."""
    run_seconds: float
    """Estimate for the whole run: its steps and validations. Saves overlap with steps."""


def _from_to(losses: Sequence[float]) -> str:
    first, last = losses[0], losses[-1]
    return f"{first:.4f}" if len(losses) == 1 else f"{first:.4f} → {last:.4f}"


def report(result: SmokeResult) -> Iterator[str]:
    """The lines for the user: what was made, what it took, what the run will take, and whether it will work."""
    steps, ranks = counted(result.steps, "step"), counted(result.ranks, "rank")
    held_out = ", ".join(f"{name} {loss:.4f}" for name, loss in result.validation_losses.items())
    rows = {
        "loss": f"{_from_to(result.losses)} nats over {steps} on "
        f"{ranks}; a model that knows nothing has {result.uniform_loss:.4f}",
        **_start(result),
        "held out": f"{held_out}; took {duration(result.validation_seconds)}" if held_out else "no validation set",
        "speed": f"{result.step_seconds:,.3g} s per step, {rounded(result.tokens_per_second)} tokens/s; the first step "
        f"took {duration(result.first_step_seconds)}",
        "memory": _memory(result.peak_memory),
        "checkpoint": f"{size(result.checkpoint_bytes)}, written, read back and equal to the memory",
        "disk": f"{size(result.disk_free_bytes)} free, {size(_needed_bytes(result))} needed for "
        f"{counted(result.checkpoints_kept, 'checkpoint')} at once",
        "whole run": f"about {duration(result.run_seconds)} for {counted(result.total_steps, 'step')}, "
        f"{counted(result.validations, 'validation')} and {counted(result.checkpoints, 'checkpoint')}",
    }
    for name, text in rows.items():
        yield f"smoke test · {name:10} · {text}"
    warnings = list(_warnings(result))
    yield from (f"warning: {warning}" for warning in warnings)
    count = f" with {counted(len(warnings), 'warning')}" if warnings else ""
    yield f"smoke test · passed{count} · {result.run_dir} was not touched; to start the run, leave --smoke out"


def _start(result: SmokeResult) -> dict[str, str]:
    """A row about a model that starts no better than one that knows nothing."""
    first, uniform = result.losses[0], result.uniform_loss
    if not first > (1 - _NEAR_CHANCE) * uniform:
        return {}
    chance = "near chance" if first < (1 + _NEAR_CHANCE) * uniform else "worse than chance"
    return {
        "start": f"{chance}: expected of new weights only; if the model was trained before, look whether its weights, "
        "its tokenizer and this text belong together"
    }


def _memory(memory: PeakMemory) -> str:
    at_most = f"at most {gib(memory.peak_bytes, 1)} GiB"
    if memory.gpu_bytes is None:
        return f"{at_most} resident, on rank {memory.rank}"
    return f"{at_most} of the {gib(memory.gpu_bytes, 1)} GiB of a GPU, on rank {memory.rank}"


def _needed_bytes(result: SmokeResult) -> int:
    return result.checkpoints_kept * result.checkpoint_bytes


def _warnings(result: SmokeResult) -> Iterator[str]:
    """What the run may fail of although its first steps worked."""
    memory = result.peak_memory
    if result.skipped_steps:
        yield (
            f"{result.skipped_steps} of {result.steps} steps were skipped, for the reasons above; a run stops after "
            "guard.max_skipped_steps in a row"
        )
    if memory.gpu_bytes is not None and memory.peak_bytes > _FULL_MEMORY * memory.gpu_bytes:
        yield (
            "the GPU's memory is nearly full, and a later step may need more; lower train.micro_batch_rows or set "
            "model.recompute to selective or full"
        )
    if _needed_bytes(result) > result.disk_free_bytes:
        yield (
            f"the disk has no room for {counted(result.checkpoints_kept, 'checkpoint')}; make room, lower "
            "checkpoint.keep_last or raise checkpoint.keep_every_tokens"
        )
