"""Of test_gradients: the gradients of a ZeRO step."""

from functools import partial

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import HeadSettings, SelectiveLM
from megaslm.slm import head_pass
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.spans import SpanRule
from megaslm.slm.weights import WeightedObjective
from megaslm.training.selection_rule import weight_rule
from megaslm.training.step import TrainStep
from tests.ranks.gradient_cases import DOMAIN_RATIOS, GLOBAL_ROWS, POLICIES, STEP, Batch, Case, config_of
from tests.toy import EOS_ID, VOCAB_SIZE


class RecordingEngine(ZeroEngine):
    """Keeps the whole gradients of the step's end, before they are used up."""

    def __init__(self, model: SelectiveLM, settings: dict[str, object], config: RunConfig) -> None:
        super().__init__(model, settings, adamw(model, settings, config.train))
        self.model = model
        self.gradients: dict[str, Tensor] = {}

    def step(self, lr: float) -> bool:
        if self._engine.is_gradient_accumulation_boundary():
            self.gradients = {
                name: safe_get_full_grad(parameter).double() for name, parameter in self.model.named_parameters()
            }
        return super().step(lr)


def start_engine(case: Case, config: RunConfig, world: World) -> RecordingEngine:
    plan = plan_batches(config, world.size)
    assert plan.micro_steps == case.micro_steps
    settings = deepspeed_settings(config, plan, precision="fp32", on_gpu=False)
    sharding = ZeroSharding(settings)
    architecture = config.model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    lm.config.sliding_window = case.window
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=sharding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        prepare_layers(lm.train(), recompute=case.recompute, compiled=case.compiled)
    return RecordingEngine(SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True), settings, config)


def step_gradients(engine: RecordingEngine, case: Case, world: World) -> dict[str, Tensor]:
    """The gradients of one step that moves nothing: its learning rate is 0."""
    engine.model.lm.lm_head.settings = HeadSettings(case.method)
    micro_batches = list(Batch.of(case).share(world, GLOBAL_ROWS // world.size // case.micro_steps))
    rule = SelectionRule(
        KeepRatio(case.keep_ratio),
        criterion=case.criterion,
        scope=case.scope,
        mode=case.mode,
        max_ref_loss=case.max_ref_loss,
        domain_ratios=DOMAIN_RATIOS if case.apart else (),
        policy=POLICIES[case.policy],
    )
    selective, weights = SelectiveObjective(rule, case.state), weight_rule(case.slm)
    objective = selective if weights is None else WeightedObjective(selective, weights)
    train_step = TrainStep(
        engine,
        objective,
        world,
        EOS_ID,
        domain_count=2,
        may_repeat_rows=False,
        keeps_graphs=case.keeps_graphs,
        by_entropy=case.criterion == "student_entropy",
        spans=None if case.span_reach is None else SpanRule(EOS_ID, case.span_reach),
    )
    train_step(micro_batches, Moment(STEP, 0), learning_rate=0.0)
    return engine.gradients


_ENGINES: dict[object, RecordingEngine] = {}
"""What a rank has started for one case and keeps for the next."""


def gradients(world: World, case: Case) -> dict[str, Tensor]:
    """The job: every parameter's whole gradient, as this rank has it."""
    kind = (case.tied, case.micro_steps, case.recompute, case.compiled, case.stage, case.window)
    if kind not in _ENGINES:
        _ENGINES[kind] = start_engine(case, config_of(case, world.size), world)
    with pytest.MonkeyPatch.context() as patch:
        # Several chunks a call, and not equally many on the two ranks: no rank waits for another inside the head.
        patch.setattr(head_pass, "_LOGIT_BYTES_ON_CPU", 4 * VOCAB_SIZE * (10 + 20 * world.rank))
        return step_gradients(_ENGINES[kind], case, world)
