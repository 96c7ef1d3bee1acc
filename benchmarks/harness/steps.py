"""A run's model under its engine, and the optimiser steps of a training on rows that are drawn."""

from collections.abc import Callable
from dataclasses import replace

import torch
from harness.references import Whole
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import Architecture, RunConfig
from megaslm.dataset.packing import document_bounds
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroSharding
from megaslm.model.load import Sharding, build_from_shape, choose_precision, draw_weights, dtype_of
from megaslm.model.selective_lm import CausalLM
from megaslm.slm.objective import Objective
from megaslm.slm.rule import Moment
from megaslm.stream.loader import MicroBatch
from megaslm.training.start import under_engine
from megaslm.training.step import TrainStep

EOS_ID = 2
_LEARNING_RATE = 1e-6
"""So low that a step takes as long as the one before it, and selects much the same."""
_MEAN_LOSS, _LOSS_DEVIATION = 8.3, 0.5


class Steps:
    """Optimiser steps of a run that begins with random weights, one call each."""

    def __init__(
        self, config: RunConfig, world: World, draw_tokens: Callable[[int, int], Tensor], top_logits: int = 0
    ) -> None:
        """`draw_tokens` gives int64 tokens of a shape, on the device of `world`; see `frequent_and_rare`. Rows have so
        many most likely tokens of a reference: the target and those that follow it in the vocabulary."""
        self.plan: BatchPlan = plan_batches(config, world.size)
        self._world, self._draw_tokens = world, draw_tokens
        precision = choose_precision(config.model.precision, world.device)
        settings = deepspeed_settings(config, self.plan, precision=precision, on_gpu=world.device.type == "cuda")
        sharding = ZeroSharding(settings)
        lm = drawn_lm(shape_of(config), dtype_of(precision), sharding, world.device)
        self.model_config = lm.config
        self.engine = under_engine(lm, config, settings, eos_id=EOS_ID, device=world.device)
        self._generator = torch.Generator(world.device).manual_seed(0)
        self._steps = 0
        self._rows_read = 0
        self._top_logits = top_logits

    def step(
        self,
        objective: Objective,
        reference: Callable[[Tensor], Tensor] | None = None,
        *,
        keeps_graphs: bool = True,
    ) -> None:
        """One step. With `reference`, its losses of the tokens are computed first, as if it ran beside the training."""
        micro_batches = [self.micro_batch(reference) for _ in range(self.plan.micro_steps)]
        self.step_on(micro_batches, objective, keeps_graphs=keeps_graphs)

    def step_on(self, micro_batches: list[MicroBatch], objective: Objective, *, keeps_graphs: bool = True) -> None:
        """One step on rows that are drawn already."""
        self._steps += 1
        train_step = TrainStep(
            self.engine,
            objective,
            self._world,
            EOS_ID,
            domain_count=1,
            may_repeat_rows=False,
            keeps_graphs=keeps_graphs,
        )
        moment = Moment(self._steps, self._steps * self.plan.tokens_per_step)
        train_step(micro_batches, moment, learning_rate=_LEARNING_RATE).sums.sum().item()

    def micro_batch(self, reference: Callable[[Tensor], Tensor] | None = None) -> MicroBatch:
        """Rows with reference losses around those of an untrained model."""
        count, seq_len = self.plan.micro_batch_rows, self.plan.seq_len
        tokens = self._draw_tokens(count, seq_len + 1)
        rows = torch.arange(count, device=tokens.device) + self._rows_read
        self._rows_read += count
        noise = torch.randn(count, seq_len, generator=self._generator, device=tokens.device)
        base = _MEAN_LOSS if reference is None else reference(tokens)
        # The loader finds the documents before rows go to the device.
        bounds = torch.from_numpy(document_bounds(tokens[:, :-1].cpu().numpy(), EOS_ID)).to(tokens.device)
        ref_loss = base + _LOSS_DEVIATION * noise
        found = MicroBatch(tokens, rows, torch.zeros_like(rows), 0, {"ref_loss": ref_loss}, bounds)
        if not self._top_logits:
            return found
        following = torch.arange(self._top_logits, device=tokens.device)
        ids = (tokens[:, 1:, None] + following) % self.model_config.vocab_size
        buckets = torch.linspace(0.0, -4.0, self._top_logits + 1, device=tokens.device).log_softmax(0)
        stored = buckets.half().repeat(count, seq_len, 1)
        return replace(found, columns={**found.columns, "ref_top_logprob": stored, "ref_top_id": ids.int()})


def with_batch(config: RunConfig, micro_batch_rows: int, micro_steps: int) -> RunConfig:
    """The run with other micro-batches, on one rank."""
    batch_tokens = micro_steps * micro_batch_rows * config.data.seq_len
    batch = {"micro_batch_rows": micro_batch_rows, "global_batch_tokens": batch_tokens}
    return config.model_copy(update={"train": config.train.model_copy(update=batch)})


def shape_of(config: RunConfig) -> Architecture:
    """The architecture of a run that starts from random weights."""
    assert config.model.from_scratch is not None
    return config.model.from_scratch


def drawn_lm(architecture: Architecture, dtype: torch.dtype, sharding: Sharding, device: torch.device) -> CausalLM:
    """Random weights, the same each time. A GPU draws them itself: a host takes minutes for billions."""
    if device.type != "cuda":
        lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=dtype)
        draw_weights(lm, seed=0, standard_deviation=architecture.initializer_range, sharding=sharding)
        return lm
    with torch.device(device):
        lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in lm.parameters():
        with sharding.whole([parameter]), torch.no_grad():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, architecture.initializer_range, generator=generator)
            else:
                parameter.fill_(1.0)
    return lm


def undivided_lm(config: RunConfig) -> CausalLM:
    """The run's model in float32 on the CPU, before any engine announces itself: later ones are divided."""
    return drawn_lm(shape_of(config), torch.float32, Whole(), torch.device("cpu"))


def frequent_and_rare(vocab_size: int, device: torch.device) -> Callable[[int, int], Tensor]:
    """Tokens of which some are frequent and most are rare, as in text. Documents end where EOS happens to be drawn."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, length: int) -> Tensor:
        return (vocab_size * torch.rand(rows, length, generator=generator, device=device) ** 3).long()

    return draw
