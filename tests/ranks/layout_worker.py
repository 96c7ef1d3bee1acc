"""The job of test_layouts: trains by every rule on one layout, and records each step."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TypedDict

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine, ZeroSharding
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import AboveThreshold, Choice, HeadOutput
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, MeasureLosses, Moment, SelectionRule, StepPlan
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import value_of_sort_key
from megaslm.slm.topk import AllReduceSum, value_of_image
from megaslm.stream.loader import MicroBatch
from megaslm.training.step import TrainStep
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, run_config

GLOBAL_ROWS = 8
LEARNING_RATE = 0.1
KEEP_RATIO = Decimal("0.6")
RULES = {
    "batch exact": SelectionRule(KeepRatio(KEEP_RATIO), scope="batch", mode="exact"),
    "batch running": SelectionRule(KeepRatio(KEEP_RATIO), scope="batch", mode="running"),
    "sequence": SelectionRule(KeepRatio(KEEP_RATIO), scope="sequence"),
    "microbatch": SelectionRule(KeepRatio(KEEP_RATIO), scope="microbatch"),
    "repeated rows": SelectionRule(KeepRatio(KEEP_RATIO), scope="batch", mode="exact"),
}
ROWS = {"repeated rows": (0, 3, 3, 1, 0, 5, 3, 0)}
"""Which of its 8 rows a step has; without an entry each of them once."""


Step = dict[str, Tensor]
"""One rank's valid targets in one step, (n,) each: `keys`, `values`, `selected`, `thresholds` of their groups."""


class Run(TypedDict):
    """What one rank saw of one rule on one layout; parameters are whole."""

    steps: list[Step]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


class RecordingObjective(SelectiveObjective):
    """Keeps what every step ranked, where it cut and what it chose."""

    def __init__(self, rule: SelectionRule) -> None:
        super().__init__(rule)
        self.steps: list[Step] = []

    def plan_step(
        self,
        targets: Targets,
        micro_steps: int,
        moment: Moment,
        measure_losses: MeasureLosses,
        all_reduce_sum: AllReduceSum,
    ) -> StepPlan:
        self._targets = targets
        self._threshold = value_of_sort_key(self._recent.forecast(torch.device("cpu"))) if len(self._recent) else None
        return super().plan_step(targets, micro_steps, moment, measure_losses, all_reduce_sum)

    def end_step(self, plan: StepPlan, output: HeadOutput) -> Tensor | None:
        step_cut = super().end_step(plan, output)
        losses = output.losses if plan.losses is None else plan.losses
        values, valid = losses - self._targets.column("ref_loss"), self._targets.valid
        self.steps.append(
            {
                "keys": self._targets.keys[valid],
                "values": values[valid],
                "thresholds": self._thresholds_of(plan.choices[0], output, step_cut).expand_as(values)[valid],
                "selected": output.mask[valid],
            }
        )
        return step_cut

    def _thresholds_of(self, choice: Choice, output: HeadOutput, step_cut: Tensor | None) -> Tensor:
        """The value at which each row of the step was cut, in a shape that expands to that of the values."""
        if groups := len(output.threshold):
            return value_of_image(output.threshold).repeat_interleave(len(output.losses) // groups)[:, None]
        cut = self._threshold if isinstance(choice, AboveThreshold) else step_cut
        assert cut is not None
        return cut


def micro_batches(step: int, world: World, micro_steps: int, chosen: Sequence[int]) -> Iterator[MicroBatch]:
    """This rank's rows of a step, which are the same 8 on every layout and others at every step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, VOCAB_SIZE, (GLOBAL_ROWS, SEQ_LEN + 1), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = EOS_ID
    ref_loss = 4.2 + 2.0 * torch.randn(GLOBAL_ROWS, SEQ_LEN, generator=generator)
    mine = torch.tensor(chosen).chunk(world.size)[world.rank]
    for rows in mine.chunk(micro_steps):
        yield MicroBatch(tokens[rows], step * GLOBAL_ROWS + rows, rows % 2, 0, {"ref_loss": ref_loss[rows]})


def start_model(config: RunConfig, world: World) -> tuple[SelectiveLM, ZeroEngine]:
    settings = deepspeed_settings(config, plan_batches(config, world.size), precision="fp32", on_gpu=False)
    sharding = ZeroSharding(settings)
    architecture = config.model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=sharding)
    lm.train()
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
    return model, ZeroEngine(model, settings, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))


def whole_parameters(model: SelectiveLM) -> dict[str, Tensor]:
    return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in model.named_parameters()}


def train(name: str, world: World, micro_steps: int, *, steps: int, layers: int) -> Run:
    """Plain SGD from the same start: its steps are as far apart as the gradients are."""
    config = run_config(
        Path("unused"),
        Path("unused"),
        model={"from_scratch": {**SHAPE, "num_layers": layers}},
        # Clipped gradients would be the same whatever they are divided by.
        train={"micro_batch_rows": GLOBAL_ROWS // world.size // micro_steps, "max_grad_norm": 0.0},
        deepspeed_extra={"zero_allow_untested_optimizer": True},
    )
    model, engine = start_model(config, world)
    before = whole_parameters(model)
    objective = RecordingObjective(RULES[name])
    rows = ROWS.get(name, range(GLOBAL_ROWS))
    train_step = TrainStep(engine, objective, world, EOS_ID, domain_count=2, may_repeat_rows=name in ROWS)
    for step in range(1, steps + 1):
        train_step(list(micro_batches(step, world, micro_steps, rows)), Moment(step, 0), LEARNING_RATE)
    return Run(steps=objective.steps, before=before, after=whole_parameters(model))


def steps_by(name: str, steps: int) -> int:
    """A step by a threshold, or by a forecast, depends on those before; of all others half are made."""
    return steps if name in ("batch exact", "batch running") else steps // 2


def train_by_every_rule(world: World, micro_steps: int, steps: int, layers: int) -> dict[str, Run]:
    """The job: what this rank saw of each rule."""
    return {name: train(name, world, micro_steps, steps=steps_by(name, steps), layers=layers) for name in RULES}
