"""How a step of several micro-steps gets all losses before its first backward pass: kept graphs, or a second pass."""

import os
from dataclasses import dataclass

import torch

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.config.selection import SlmSection
from megaslm.engine.distributed import World, gather_objects
from megaslm.engine.zero import KEEPS_GRAPHS, ZeroEngine, deepspeed_version
from megaslm.errors import ConfigError
from megaslm.health.host_facts import available_memory_bytes
from megaslm.model.load import choose_precision, dtype_of, parameter_count
from megaslm.model.memory import kept_graph_bytes, kept_graphs_may_take_bytes
from megaslm.observe.display import counted, size

_STATE_BYTES_PER_PARAMETER = 12
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
    if config.train.objective != "slm" or not slm.needs_all_losses or plan.micro_steps == 1:
        return ExactWay(keeps_graphs=False)
    dtype = dtype_of(choose_precision(config.model.precision, world.device))
    return chosen_way(
        slm,
        plan.micro_steps,
        deepspeed_version(),
        needed_bytes=kept_graph_bytes(config, plan, engine.model.lm.config, dtype),
        left_bytes=min(gather_objects(_left_bytes(config, engine, world))),
    )


def chosen_way(slm: SlmSection, micro_steps: int, deepspeed: str, *, needed_bytes: int, left_bytes: int) -> ExactWay:
    """The way that costs least of those that are right and fit.

    Args:
        slm: `exact_by` may ask for one of them.
        micro_steps: at least 2.
        deepspeed: the installed version.
        needed_bytes: what kept graphs take on a rank.
        left_bytes: the memory left on the rank that has least; negative where the optimiser's state will not fit.

    Raises:
        ConfigError: see `exact_way`.
    """
    step = f"plan: exact selection over {counted(micro_steps, 'micro-step')}"
    if slm.exact_by == "second_pass":
        return ExactWay(keeps_graphs=False, line=f"{step} makes a second forward pass (slm.exact_by = second_pass)")
    if deepspeed not in KEEPS_GRAPHS:
        known = f"kept graphs are known to be right under DeepSpeed {' and '.join(KEEPS_GRAPHS)}, found {deepspeed}"
        if slm.exact_by == "kept_graphs":
            raise ConfigError(
                f"slm.exact_by = kept_graphs: {known}; install that version, or set slm.exact_by to second_pass"
            )
        return ExactWay(keeps_graphs=False, line=f"{step} makes a second forward pass: {known}")
    may_take_bytes = kept_graphs_may_take_bytes(left_bytes)
    if slm.exact_by == "auto" and needed_bytes > may_take_bytes:
        return ExactWay(
            keeps_graphs=False,
            line=f"{step} makes a second forward pass: kept graphs would take {size(needed_bytes)} per rank, more than "
            f"half of the memory left, {size(may_take_bytes)}",
        )
    return ExactWay(
        keeps_graphs=True,
        line=f"{step} keeps their graphs, {size(needed_bytes)} per rank; slm.exact_by = second_pass takes less memory "
        "and more time",
    )


def _left_bytes(config: RunConfig, engine: ZeroEngine, world: World) -> int:
    """This rank's share of its device's memory that is free now and after the optimiser's state is allocated."""
    on_cpu = world.device.type == "cpu"
    states = _STATE_BYTES_PER_PARAMETER * parameter_count(engine.model)
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
