"""The memory of a rank as a plan foresees it, and how an exact selection then gets the losses of all micro-steps."""

from dataclasses import dataclass

import torch

from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.model.load import ChosenPrecision, choose_precision, dtype_of
from megaslm.model.memory import (
    PROCESS_BYTES_ON_CPU,
    RankMemory,
    kept_graph_bytes,
    kept_graphs_may_take_bytes,
    rank_memory,
)
from megaslm.model.shapes import Shape
from megaslm.planning.machine import Machine


@dataclass(frozen=True)
class PlannedExact:
    """How a step of several micro-steps gets all losses before its first backward pass, and why (`slm.exact_by`)."""

    keeps_graphs: bool
    """Else a second forward pass is made."""
    asked_for: str
    """`slm.exact_by`."""
    graph_bytes: int
    """Of a rank: of all graphs that are kept but one, which each step holds."""
    may_take_bytes: int
    """What they may take where the run decides by the memory left."""


@dataclass(frozen=True)
class Foreseen:
    """What a rank needs."""

    memory: RankMemory
    exact: PlannedExact | None
    """None where no selection waits for the losses of several micro-steps."""

    @property
    def makes_second_pass(self) -> bool:
        """Whether each micro-batch has a forward pass more."""
        return self.exact is not None and not self.exact.keeps_graphs


def planned_precision(config: RunConfig, machine: Machine) -> ChosenPrecision:
    """The precision of the run's passes on a machine."""
    return choose_precision(config.model.precision, torch.device("cuda" if machine.on_gpu else "cpu"))


def foresee(config: RunConfig, shape: Shape, machine: Machine) -> Foreseen:
    """The memory of a rank of a run whose length is known, and the way of its exact selection.

    The way is decided as `training/exact_way.py` does at the start of the run. The memory left is that of the GPU
    beside the states. The run measures it, and finds less by what CUDA and NCCL hold.
    """
    plan, slm = plan_batches(config, machine.ranks), config.slm
    waits = config.train.objective == "slm" and slm.needs_all_losses and plan.micro_steps > 1
    one_graph = _memory(config, plan, shape, machine)
    if not waits:
        return Foreseen(one_graph, None)
    graphs = kept_graph_bytes(config, plan, shape.config, dtype_of(planned_precision(config, machine)))
    may_take = kept_graphs_may_take_bytes(machine.memory_bytes - one_graph.state_bytes)
    keeps = slm.exact_by == "kept_graphs" or (slm.exact_by == "auto" and graphs <= may_take)
    memory = _memory(config, plan, shape, machine, keeps_graphs=True) if keeps else one_graph
    return Foreseen(memory, PlannedExact(keeps, slm.exact_by, graphs, may_take))


def _memory(
    config: RunConfig, plan: BatchPlan, shape: Shape, machine: Machine, *, keeps_graphs: bool = False
) -> RankMemory:
    return rank_memory(
        config,
        plan,
        shape.config,
        planned_precision(config, machine),
        on_gpu=machine.on_gpu,
        process_bytes=PROCESS_BYTES_ON_CPU,
        keeps_graphs=keeps_graphs,
    )
