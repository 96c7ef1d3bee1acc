"""The memory that a rank needs in training: states and buffers by formula, activations traced."""

from dataclasses import astuple, dataclass

import torch
from transformers import PretrainedConfig

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.model.filtered_backward import filtered_layers, kept_keys_bytes
from megaslm.model.load import ChosenPrecision, dtype_of
from megaslm.model.selective_lm import HeadSettings
from megaslm.model.traced_memory import TrunkMemory, parameter_counts, trunk_memory
from megaslm.model.zero_memory import Weights, zero_memory
from megaslm.slm.head_memory import HeadWay, head_bytes

PROCESS_BYTES_ON_CPU = 480_000_000
"""What a rank on a CPU holds beside its model, without freed memory: Python, PyTorch, DeepSpeed and other libraries.
Small models noted 476 to 494 MB in memory.json, with torch 2.13 and DeepSpeed 0.19; other releases differ. A run reads
its own."""

_SHARE_OF_GRAPHS = 2
"""Kept graphs may take one part in so many of the memory left. The rest is for what is not foreseen here."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank needs. The states are there all the time, and one of the moments at a time."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    gathered: int
    """Whole weights, in all moments but the update."""
    activations: int
    """Kept between the passes, for all micro-steps whose graphs are kept."""
    forward: int
    """Beside the kept activations, while the layers' forward pass runs."""
    head: int
    """Beside the kept activations, while the head computes losses and gradients."""
    backward: int
    """Beside the kept activations, while the layers' backward pass runs: working memory and gradients on their way."""
    update: int
    """In the optimiser's step, when no activations are held."""
    process: int
    """On a CPU: held before there is a model. On a GPU 0: what is compared is what PyTorch allocates there."""

    @property
    def state_bytes(self) -> int:
        """What is there all the time."""
        return self.process + self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def moments(self) -> dict[str, int]:
        """What each moment takes beside the states."""
        held = self.gathered + self.activations
        return {
            "forward": held + self.forward,
            "head": held + self.head,
            "backward": held + self.backward,
            "update": self.update,
        }

    @property
    def peak_moment(self) -> str:
        """The moment that takes the most."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """The most at once."""
        return self.state_bytes + max(self.moments.values())


def rank_memory(
    config: RunConfig,
    plan: BatchPlan,
    model: PretrainedConfig,
    precision: ChosenPrecision,
    *,
    on_gpu: bool,
    process_bytes: int = 0,
    keeps_graphs: bool = False,
) -> RankMemory:
    """The memory of a rank in a step of the run. Takes about half a second for a new shape.

    Args:
        config: of the run.
        plan: how its batches are divided.
        model: the model's configuration.
        precision: of the passes.
        on_gpu: whether it trains on GPUs.
        process_bytes: what the rank holds before it has a model; counts on a CPU only.
        keeps_graphs: whether an exact selection keeps the graphs of all micro-steps.
    """
    dtype = dtype_of(precision)
    trunk = _trunk(config, plan, model, dtype)
    counts, layer = parameter_counts(model)
    weights = Weights(counts.total, layer, max(counts.embedding, layer), dtype.itemsize)
    states = zero_memory(config.zero, weights, plan.world_size, micro_steps=plan.micro_steps, on_gpu=on_gpu)
    graphs = plan.micro_steps if keeps_graphs else 1
    return RankMemory(
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        buffers=states.buffers,
        gathered=states.gathered,
        activations=graphs * trunk.kept_bytes,
        forward=max(0, trunk.forward_bytes - trunk.kept_bytes),
        head=_head(config, plan, model, dtype, on_gpu=on_gpu),
        backward=max(0, trunk.backward_bytes - trunk.kept_bytes) + states.in_flight,
        update=states.update,
        process=0 if on_gpu else process_bytes,
    )


def kept_graph_bytes(config: RunConfig, plan: BatchPlan, model: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes per rank of all graphs of a step but one, which a step without kept graphs holds too.

    Args:
        config: of the run.
        plan: how its batches are divided.
        model: the model's configuration.
        dtype: of the passes.
    """
    return (plan.micro_steps - 1) * _trunk(config, plan, model, dtype).kept_bytes


def kept_graphs_may_take_bytes(left_bytes: int) -> int:
    """What kept graphs may take of the memory that a rank has left beside its weights and optimiser states."""
    return max(0, left_bytes // _SHARE_OF_GRAPHS)


def _trunk(config: RunConfig, plan: BatchPlan, model: PretrainedConfig, dtype: torch.dtype) -> TrunkMemory:
    """A micro-batch in the layers and the embedding. Layers that leave tokens out keep the keys and values of all."""
    trunk = trunk_memory(model, config.model.recompute, dtype, rows=plan.micro_batch_rows, length=plan.seq_len)
    layers = filtered_layers(config, model.num_hidden_layers)
    keys = layers * kept_keys_bytes(model, plan.micro_batch_rows * plan.seq_len, dtype)
    return TrunkMemory(*(value + keys for value in astuple(trunk)))


def _head(config: RunConfig, plan: BatchPlan, model: PretrainedConfig, dtype: torch.dtype, *, on_gpu: bool) -> int:
    slm, rows = config.slm, plan.micro_batch_rows * plan.seq_len
    return head_bytes(
        rows,
        model.hidden_size,
        model.vocab_size,
        dtype,
        head_way(config, plan, rows, model.vocab_size, dtype),
        # A fixed threshold may select every target.
        keep_ratio=1.0 if slm.has_fixed_threshold or slm.trains_unselected else float(slm.keep_ratio),
        on_gpu=on_gpu,
    )


def head_way(config: RunConfig, plan: BatchPlan, rows: int, vocab_size: int, dtype: torch.dtype) -> HeadWay:
    """How the head computes in a run: by its choice, and by its settings where the choice waits for the losses."""
    slm = config.slm
    known_first = slm.scope == "batch" and slm.mode == "exact" and plan.micro_steps > 1
    if config.train.objective != "slm" or not slm.sorts_by_model or known_first:
        return "every"
    settings = HeadSettings(slm.head, int(slm.head_cache_gib * (1 << 30)))
    method = settings.method_for(torch.empty(rows, 0, dtype=dtype), vocab_size)
    # Where every valid target is trained on, a forecast of the selected ones has no use.
    return "recompute" if method == "bracket" and slm.trains_unselected else method
