"""The job of test_skipped_steps: trains a case with a step that goes wrong, and once more without that step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Choice, HeadOutput
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.threshold import AT_START, SelectionState
from megaslm.stream.loader import MicroBatch
from megaslm.training.step import TrainStep
from tests.chosen import state_at
from tests.injection.faults import arm
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, run_config

STEPS = 3
BAD_STEP = 2
GLOBAL_ROWS = 8
BAD_ROW = GLOBAL_ROWS * BAD_STEP + GLOBAL_ROWS - 1
"""The last row of the step: it is in the last micro-batch of the second rank."""
BAD_PLACES = slice(5, 8)

Ill = Literal["reference", "hidden", "unselected", "gradient", "infinite"]
"""What is NaN in the bad step: the reference losses of a row, its hidden states, those of targets that are not
selected, the gradient; or an infinite loss."""


@dataclass(frozen=True)
class Case:
    """A way to train and what goes wrong in it."""

    ill: Ill
    rule: SelectionRule | None = None
    micro_steps: int = 1
    stage: int = 3
    offload: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    persistent_parameters: int = 0
    keeps_graphs: bool = False

    @property
    def objective(self) -> Objective:
        return (
            CausalObjective()
            if self.rule is None
            else SelectiveObjective(self.rule, state_at(0.0) if self.rule.mode == "running" else AT_START)
        )


KEEP = KeepRatio(Decimal("0.6"))
EXACT, RUNNING = SelectionRule(KEEP), SelectionRule(KEEP, mode="running")
SEQUENCE, REFERENCE = SelectionRule(KEEP, scope="sequence"), SelectionRule(KEEP, "reference")
CASES = {
    "exact": Case("reference", EXACT),
    "exact, lost in the model": Case("hidden", EXACT),
    "kept graphs": Case("reference", EXACT, micro_steps=2, keeps_graphs=True),
    "kept graphs, gradient": Case("gradient", EXACT, micro_steps=2, keeps_graphs=True),
    "running": Case("reference", RUNNING, micro_steps=2),
    "sequence in several": Case("reference", SEQUENCE, micro_steps=2),
    "static": Case("reference", REFERENCE, micro_steps=2),
    "static, unselected": Case("unselected", REFERENCE, micro_steps=2),
    "causal": Case("hidden", micro_steps=2),
    "infinite": Case("infinite", micro_steps=2),
    "whole parameters": Case("gradient", EXACT, persistent_parameters=100_000),
    **{
        f"stage {stage}, {name}": case
        for stage in (0, 1, 2)
        for name, case in {
            "exact": Case("reference", EXACT, stage=stage),
            "gradient": Case("gradient", RUNNING, micro_steps=2, stage=stage),
        }.items()
    },
    **{f"stage {stage}, offloaded": Case("gradient", EXACT, 2, stage, offload=True) for stage in (1, 2, 3)},
    **{f"stage {stage}, bf16": Case("gradient", EXACT, 2, stage, precision="bf16") for stage in (1, 2, 3)},
}


@dataclass(frozen=True)
class Run:
    """What one rank saw of each step, and the whole float32 weights at the end."""

    skipped: dict[int, str | None] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)
    selection: dict[int, SelectionState] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


class IllEngine(ZeroEngine):
    """An engine whose model can be ill in the last micro-step of a step."""

    def __init__(self, case: Case, config: RunConfig, world: World) -> None:
        settings = deepspeed_settings(config, plan_batches(config, world.size), precision=case.precision, on_gpu=False)
        sharding = ZeroSharding(settings)
        architecture = config.model.from_scratch
        assert architecture is not None
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=dtype)
        draw_weights(lm, seed=3, standard_deviation=0.3, sharding=sharding)
        lm.train()
        lm.model.register_forward_hook(self._spoil_hidden_states)
        self.model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
        super().__init__(self.model, settings, adamw(self.model, settings, config.train))
        self.ill: Ill | None = None

    def forward(self, tokens: Tensor, choice: Choice, document_bounds: Tensor | None = None) -> HeadOutput:
        if not self._engine.is_gradient_accumulation_boundary():
            return super().forward(tokens, choice, document_bounds)
        self._hidden_are_ill = self.ill in ("hidden", "unselected")
        output = super().forward(tokens, choice, document_bounds)
        self._hidden_are_ill = False
        if self.ill == "infinite":
            # As of a target whose logit is -inf: its loss is infinite, its gradient is not.
            output.losses[-1, BAD_PLACES] = torch.inf
            return output._replace(total=output.total + torch.inf)
        return output

    _hidden_are_ill = False

    def _spoil_hidden_states(self, _module: object, _inputs: object, output: BaseModelOutputWithPast) -> None:
        if self._hidden_are_ill:
            hidden = output.last_hidden_state
            ill = torch.zeros(hidden.shape[:2], dtype=torch.bool)
            ill[-1, BAD_PLACES] = True
            output.last_hidden_state = hidden.masked_fill(ill[..., None], torch.nan)


def micro_batches(step: int, case: Case, world: World) -> Iterator[MicroBatch]:
    """This rank's rows of a step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, VOCAB_SIZE, (GLOBAL_ROWS, SEQ_LEN + 1), generator=generator)
    ref_loss = 4.2 + 2.0 * torch.randn(GLOBAL_ROWS, SEQ_LEN, generator=generator)
    if step == BAD_STEP and case.ill == "reference":
        ref_loss[-1, BAD_PLACES] = torch.nan
    if case.ill == "unselected":
        ref_loss[-1, BAD_PLACES] = 100.0
    mine = torch.arange(GLOBAL_ROWS).chunk(world.size)[world.rank]
    for rows in mine.chunk(case.micro_steps):
        yield MicroBatch(tokens[rows], step * GLOBAL_ROWS + rows, rows % 2, 0, {"ref_loss": ref_loss[rows]})


def train(case: Case, world: World, steps: Sequence[int]) -> Run:
    """Makes the given steps, at a rate that is another in each."""
    config = run_config(
        Path("unused"),
        Path("unused"),
        model={"from_scratch": {**SHAPE, "num_layers": 1}},
        train={"micro_batch_rows": GLOBAL_ROWS // world.size // case.micro_steps},
        zero={
            "stage": case.stage,
            "offload_optimizer": case.offload,
            "param_persistence_threshold": case.persistent_parameters,
        },
    )
    engine, objective = IllEngine(case, config, world), case.objective
    train_step = TrainStep(
        engine,
        objective,
        world,
        EOS_ID,
        domain_count=2,
        may_repeat_rows=False,
        row_name=lambda row: f"row {row}",
        keeps_graphs=case.keeps_graphs,
    )
    run = Run()
    for step in steps:
        engine.ill = case.ill if step == BAD_STEP and world.rank == 1 else None
        arm(f"nan@rank1:step{step}:step" if step == BAD_STEP and case.ill == "gradient" else "")
        result = train_step(list(micro_batches(step, case, world)), Moment(step, 0), learning_rate=1e-2 / step)
        run.skipped[step] = result.skipped
        run.sums[step] = result.sums
        run.norms[step] = float(result.gradient_norm)
        run.selection[step] = objective.state()
    run.weights.update({name: whole(parameter, case.stage) for name, parameter in engine.model.named_parameters()})
    return run


def whole(parameter: nn.Parameter, stage: int) -> Tensor:
    return (parameter.detach() if stage == 0 else safe_get_full_fp32_param(parameter)).clone()


_CLEAN: dict[Case, Run] = {}
"""Runs without the bad step: what a rank has made for one case and keeps for the next."""


def train_with_and_without(world: World, name: str) -> tuple[Run, Run]:
    """The job: what this rank saw of a case with the bad step, and without it."""
    steps, case = range(1, STEPS + 1), CASES[name]
    # Without the bad step it does not matter what is ill in it.
    healthy = case if case.ill == "unselected" else replace(case, ill="gradient")
    if healthy not in _CLEAN:
        _CLEAN[healthy] = train(healthy, world, [step for step in steps if step != BAD_STEP])
    return train(case, world, steps), _CLEAN[healthy]
