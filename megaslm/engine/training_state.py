"""The training state of a rank, as fragments: stretches of parameters, under any ZeRO stage.

DeepSpeed keeps float32 weights and Adam's moments in flat tensors, and each rank has its own. Their layout depends on
the stage and the number of ranks. A checkpoint written in terms of parameters can be read under any other layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megaslm.errors import CheckpointError

Quantity = Literal["weight", "exp_avg", "exp_avg_sq"]
"""Stored for every element: the float32 weight and Adam's two moments."""
MOMENTS: tuple[Quantity, Quantity] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A stretch of a flattened parameter, and its place on this rank."""

    name: str
    """The parameter's name in the model."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    """Index of the stretch's first element in the flattened parameter."""
    count: int
    """Number of elements."""
    flat: int
    """Index of the flat tensor that holds it."""
    offset: int
    """Index of its first element in the flat tensor."""


class TrainingState:
    """Weights and moments of one rank under a DeepSpeed optimiser of any stage."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        """Takes DeepSpeed's optimiser of a module, or the plain one of stage 0; nothing is copied."""
        self._optimizer = optimizer
        self._parameters: list[Any] = list(module.parameters())
        self._adam: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        if hasattr(optimizer, "fp16_partitioned_groups_flat"):
            self.flats, self.fragments = list(optimizer.fp32_partitioned_groups_flat), tuple(_stage_3(optimizer, names))
        elif hasattr(optimizer, "update_lp_params"):
            self.flats, self.fragments = _stages_1_and_2(optimizer, names)
        else:
            self.flats, self.fragments = _stage_0(module)

    def adam_steps(self) -> int:
        """The number of Adam's updates; waits for the device.

        Raises:
            CheckpointError: parameters differ in it.
        """
        counts = {float(self._adam.state[flat]["step"]) for flat in self.flats if flat in self._adam.state}
        if len(counts) > 1:
            raise CheckpointError(f"parameters have had {sorted(counts)} updates; all must have had the same number")
        return int(counts.pop()) if counts else 0

    def quantity(self, quantity: Quantity, flat: int) -> Tensor:
        """A flat tensor of weights or moments, 1-D float32, as it is in use. The moments must exist."""
        if quantity == "weight":
            return self.flats[flat].data.view(-1)
        moments: Tensor = self._adam.state[self.flats[flat]][quantity]
        return moments.view(-1)

    def ensure_moments(self) -> None:
        """Create moments of zero where there are none: before the first step, or where all steps were skipped."""
        if any(flat not in self._adam.state for flat in self.flats):
            self.make_moments(0)

    def make_moments(self, adam_steps: int) -> None:
        """Gives every flat tensor moments of zero, and sets the number of updates."""
        # A fused step reads the count on the device, other steps read it on the host.
        fused = any(group.get("fused") for group in self._adam.param_groups)
        self.forget_moments()
        for flat in self.flats:
            self._adam.state[flat] = {
                "step": torch.tensor(float(adam_steps), device=flat.device if fused else "cpu"),
                **{moment: torch.zeros_like(flat.data) for moment in MOMENTS},
            }

    def forget_moments(self) -> None:
        """Removes the moments, as before the first step; the weights stay."""
        self._adam.state.clear()
        if hasattr(self._optimizer, "_hp_optimizer_states_linked"):
            # At stages 1 and 2 each parameter also has views of its moments, which would keep them in memory.
            for parameter in self._parameters:
                if parameter._hp_mapping is not None:
                    parameter._hp_mapping.optim_fragment = None
            self._optimizer._hp_optimizer_states_linked = False

    def publish_weights(self) -> None:
        """Copies the float32 weights to those that the model computes with. Called on all ranks."""
        optimizer = self._optimizer
        if hasattr(optimizer, "fp16_partitioned_groups_flat"):
            optimizer.checkpoint_event_prologue()
            for number in range(len(self.flats)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.checkpoint_event_epilogue()
        elif hasattr(optimizer, "update_lp_params"):
            optimizer.update_lp_params()


def _stage_3(optimizer: Any, names: dict[int, str]) -> Iterator[Fragment]:
    for number, group in enumerate(optimizer.fp16_groups):
        offset = 0
        for parameter in group:
            share = parameter.partition_numel()
            start = dist.get_rank(parameter.ds_process_group) * share
            # The last ranks' shares are padded with elements that belong to no parameter.
            count = min(share, parameter.ds_numel - start)
            if count > 0:
                yield Fragment(names[id(parameter)], tuple(parameter.ds_shape), start, count, number, offset)
            offset += share


def _stages_1_and_2(optimizer: Any, names: dict[int, str]) -> tuple[list[Tensor], tuple[Fragment, ...]]:
    with_own_buffers = hasattr(optimizer, "bf16_groups")
    groups = optimizer.bf16_groups if with_own_buffers else optimizer.bit16_groups
    flats = optimizer.fp32_groups_flat_partition if with_own_buffers else optimizer.single_partition_of_fp32_groups
    fragments = [
        Fragment(
            names[id(parameter)],
            tuple(parameter.shape),
            parameter._hp_mapping.lp_fragment_address.start,
            parameter._hp_mapping.lp_fragment_address.numel,
            number,
            parameter._hp_mapping.hp_fragment_address.start,
        )
        for number, group in enumerate(groups)
        for parameter in group
        if parameter._hp_mapping is not None
    ]
    return list(flats), tuple(fragments)


def _stage_0(module: nn.Module) -> tuple[list[Tensor], tuple[Fragment, ...]]:
    named = list(module.named_parameters())
    fragments = [
        Fragment(name, tuple(parameter.shape), 0, parameter.numel(), number, 0)
        for number, (name, parameter) in enumerate(named)
    ]
    return [parameter for _, parameter in named], tuple(fragments)
