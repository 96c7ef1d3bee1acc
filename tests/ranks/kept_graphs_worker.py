"""The job of test_kept_graphs: some steps of exact selection with several micro-steps, both ways."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import Recompute
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Choice, Deferred, HeadOutput
from megaslm.slm.criterion import Criterion
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Mode, Moment, SelectionRule
from megaslm.slm.weights import EntropyWeights, SignedWeights, WeightedObjective, WeightRule
from megaslm.stream.loader import MicroBatch
from megaslm.training.step import TrainStep
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, run_config

WEIGHTS: dict[str, WeightRule] = {
    "entropy": lambda _: EntropyWeights(power=1.0, top_tokens=20),
    "signed": partial(SignedWeights, 0.25, 4.0),
}
STEPS = 3
BAD_STEP = 2
"""No target of the last micro-batch of the last rank can be sorted in it: the step is skipped."""


@dataclass(frozen=True)
class Case:
    stage: int
    precision: Literal["fp32", "bf16"] = "fp32"
    tied: bool = False
    recompute: Recompute = "none"
    offload: bool = False
    isolation: bool = True
    micro_steps: int = 3
    criterion: Criterion = "excess"
    mode: Mode = "exact"
    max_ref_loss: float | None = None
    persistent_parameters: int = 0
    weights: Literal["entropy", "signed"] | None = None
    filtered_layers: int = 0


@dataclass(frozen=True)
class Run:
    """What one rank saw of each step, and the whole float32 weights at the end."""

    skipped: list[bool] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    thresholds: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    second_pass_ratios: list[float] = field(default_factory=list)
    gathered: list[int] = field(default_factory=list)
    """Of each backward pass: the most parameters of decoder layers that were whole after that of a layer."""
    gathers_ahead: list[bool] = field(default_factory=list)
    """After each step, under stage 3: whether DeepSpeed knows the order of modules to the end of the step."""
    graphs: list[int] = field(default_factory=list)
    """Graphs of deferred passes that are still there after each step."""
    weights: dict[str, Tensor] = field(default_factory=dict)


class WatchedEngine(ZeroEngine):
    """Notes what is whole in backward passes, and which graphs there are."""

    def __init__(self, case: Case, world: World) -> None:
        config = run_config(
            Path("unused"),
            Path("unused"),
            model={"from_scratch": {**SHAPE, "tie_embeddings": case.tied}},
            train={"micro_batch_rows": 2, "global_batch_tokens": 2 * case.micro_steps * world.size * SEQ_LEN},
            zero={
                "stage": case.stage,
                "offload_optimizer": case.offload,
                "param_persistence_threshold": case.persistent_parameters,
                # What is used again soon would stay whole up to these numbers of elements.
                "max_reuse_distance": 1,
                "max_live_parameters": 1,
            },
        )
        plan = plan_batches(config, world.size)
        assert plan.micro_steps == case.micro_steps
        settings = deepspeed_settings(config, plan, precision=case.precision, on_gpu=False)
        sharding = ZeroSharding(settings)
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        assert config.model.from_scratch is not None
        lm = build_from_shape(config.model.from_scratch, eos_id=EOS_ID, dtype=dtype)
        draw_weights(lm, seed=3, standard_deviation=0.3, sharding=sharding)
        prepare_layers(lm.train(), recompute=case.recompute, compiled=False, filtered=case.filtered_layers)
        self.model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=case.isolation)
        self.model.backward_filter.leaves_out = case.filtered_layers > 0
        self.gathered: list[int] = []
        self.deferred: list[weakref.ref[Deferred]] = []
        for layer in lm.model.layers:
            layer.register_full_backward_hook(self._note)
        super().__init__(self.model, settings, adamw(self.model, settings, config.train))

    def forward(self, tokens: Tensor, choice: Choice | Deferred, document_bounds: Tensor | None = None) -> HeadOutput:
        if isinstance(choice, Deferred):
            # The graph holds it as long as it lives.
            self.deferred.append(weakref.ref(choice))
        return super().forward(tokens, choice, document_bounds)

    def backward(self, loss: Tensor) -> None:
        self.gathered.append(0)
        super().backward(loss)

    def _note(self, *_: Any) -> None:
        whole = sum(parameter.numel() > 1 for parameter in self.model.lm.model.layers.parameters())
        self.gathered[-1] = max(self.gathered[-1], whole)


def micro_batches(case: Case, step: int, world: World) -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(step)
    rows_of_step = 2 * case.micro_steps * world.size
    tokens = torch.randint(3, VOCAB_SIZE, (rows_of_step, SEQ_LEN + 1), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = EOS_ID
    ref_loss = 4.2 + 2.0 * torch.randn(rows_of_step, SEQ_LEN, generator=generator)
    if step == BAD_STEP:
        ref_loss[-1] = torch.nan
    for rows in torch.arange(rows_of_step).chunk(world.size)[world.rank].split(2):
        yield MicroBatch(tokens[rows], step * rows_of_step + rows, rows % 2, 0, {"ref_loss": ref_loss[rows]})


def train(world: World, case: Case, keeps_graphs: bool) -> Run:
    """The job: makes the steps."""
    engine, run = WatchedEngine(case, world), Run()
    rule = SelectionRule(KeepRatio(Decimal("0.6")), case.criterion, mode=case.mode, max_ref_loss=case.max_ref_loss)
    selective = SelectiveObjective(rule)
    step = TrainStep(
        engine,
        selective if case.weights is None else WeightedObjective(selective, WEIGHTS[case.weights]),
        world,
        EOS_ID,
        domain_count=2,
        may_repeat_rows=False,
        keeps_graphs=keeps_graphs,
        by_entropy=case.criterion == "student_entropy",
    )
    for number in range(1, STEPS + 1):
        result = step(list(micro_batches(case, number, world)), Moment(number, 0), learning_rate=1e-2 / number)
        if case.stage == 3:
            coordinator = engine._engine.optimizer.parameter_offload.get_param_coordinator()
            run.gathers_ahead.append(not coordinator.is_invalid_trace())
        run.graphs.append(sum(deferred() is not None for deferred in engine.deferred))
        run.skipped.append(result.skipped is not None)
        run.sums.append(result.sums)
        run.thresholds.append(result.threshold)
        run.norms.append(result.gradient_norm)
        run.second_pass_ratios.append(result.second_pass_ratio)
    run.gathered.extend(engine.gathered)
    run.weights.update(
        (name, (parameter.detach() if case.stage == 0 else safe_get_full_fp32_param(parameter)).clone())
        for name, parameter in engine.model.named_parameters()
    )
    return run


def train_both_ways(world: World, case: Case) -> tuple[Run, Run]:
    """The job: with kept graphs, and with a second pass."""
    return train(world, case, keeps_graphs=True), train(world, case, keeps_graphs=False)
