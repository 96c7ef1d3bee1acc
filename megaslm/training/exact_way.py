"""How a step of several micro-steps gets all losses before its first backward pass: kept graphs, or a second pass."""

import os
from dataclasses import dataclass

import torch

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World, gather_objects
from megaslm.engine.zero import KEEPS_GRAPHS, ZeroEngine, deepspeed_version
from megaslm.errors import ConfigError
from megaslm.health.host_facts import available_memory_bytes
from megaslm.model.activations import Recompute, kept_bytes_per_token
from megaslm.model.load import choose_precision, dtype_of, parameter_count
from megaslm.observe.display import counted, size

_SHARE = 2
"""Kept graphs may take one part in so many of the memory left. The rest is for what is not foreseen here."""
_STATE_BYTES_A_PARAMETER = 12
"""Allocated in the first step, in float32: the gradient and Adam's two moments."""


@dataclass(frozen=True)
class ExactWay:
    """The decision, equal on all ranks, and the line that tells it; None where there is nothing to decide."""

    keeps_graphs: bool
    line: str | None = None


def exact_way(config: RunConfig, plan: BatchPlan, engine: ZeroEngine, world: World) -> ExactWay:
    """Decides by `slm.exact_by`. Called on all ranks, before the first step.

    Raises:
        ConfigError: kept graphs are asked for under a DeepSpeed for which they are not known to be right.
    """
    slm = config.slm
    waits = slm.criterion in ("excess", "loss") and slm.scope == "batch" and slm.mode == "exact"
    if config.train.objective != "slm" or not waits or plan.micro_steps == 1:
        return ExactWay(keeps_graphs=False)
    steps = f"plan: exact selection over {counted(plan.micro_steps, 'micro-step')}"
    known = deepspeed_version() in KEEPS_GRAPHS
    unknown = f"DeepSpeed {deepspeed_version()} is not known to add up the gradients of kept graphs"
    if slm.exact_by == "kept_graphs" and not known:
        raise ConfigError(
            f"slm.exact_by = kept_graphs: {unknown}, {' and '.join(KEEPS_GRAPHS)} are; install one of these, or use "
            "slm.exact_by = auto or second_pass"
        )
    if slm.exact_by == "second_pass":
        return ExactWay(keeps_graphs=False, line=f"{steps} takes a second forward pass (slm.exact_by = second_pass)")
    if not known:
        return ExactWay(keeps_graphs=False, line=f"{steps} takes a second forward pass: {unknown}")
    needed = needed_bytes(config, plan, engine, world.device)
    may_take = min(gather_objects(_left_bytes(config, engine, world))) // _SHARE
    if slm.exact_by == "auto" and needed > may_take:
        return ExactWay(
            keeps_graphs=False,
            line=f"{steps} takes a second forward pass: kept graphs would need {size(needed)} per rank, and may take "
            f"half of the memory left, {size(max(0, may_take))}",
        )
    return ExactWay(
        keeps_graphs=True,
        line=f"{steps} keeps the graphs of all forward passes, {size(needed)} per rank; slm.exact_by = second_pass "
        "needs less memory",
    )


def needed_bytes(config: RunConfig, plan: BatchPlan, engine: ZeroEngine, device: torch.device) -> int:
    """Bytes per rank of all graphs of a step but one, which a step without kept graphs holds too."""
    recompute: Recompute = "full" if config.model.gradient_checkpointing else "none"
    dtype = dtype_of(choose_precision(config.model.precision, device))
    per_token = kept_bytes_per_token(engine.model.lm.config, dtype.itemsize, recompute)
    return (plan.micro_steps - 1) * plan.micro_batch_rows * plan.seq_len * per_token


def _left_bytes(config: RunConfig, engine: ZeroEngine, world: World) -> int:
    """This rank's share of its device's memory that is free now and after the optimiser's state is allocated."""
    on_cpu = world.device.type == "cpu"
    states = _STATE_BYTES_A_PARAMETER * parameter_count(engine.model)
    if config.zero.stage > 0:
        states //= world.size
    if config.zero.offload_optimizer and not on_cpu:
        states = 0
    if on_cpu:
        return available_memory_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - states
    free, _ = torch.cuda.mem_get_info(world.device)
    # What torch holds without using it is free too.
    held = torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
    return free + held - states
