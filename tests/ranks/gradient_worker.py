"""Of test_gradients: the gradients of a ZeRO step, and those of plain PyTorch in float64 over the whole batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import product, zip_longest
from pathlib import Path

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import Recompute, RunConfig, SlmSection
from megaslm.config.weighting import OWN_VALUES, WeightName
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import HeadSettings, SelectiveLM
from megaslm.slm import head_pass
from megaslm.slm.keys import HASH_BITS, hash_of, target_keys
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.policy import Policy
from megaslm.slm.rule import KeepRatio, Mode, Moment, Scope, SelectionRule
from megaslm.slm.spans import SpanRule
from megaslm.slm.targets import Criterion
from megaslm.slm.threshold import AT_START, SelectionState
from megaslm.slm.token_loss import HeadMethod
from megaslm.slm.weights import WeightedObjective
from megaslm.stream.loader import MicroBatch
from megaslm.training.step import TrainStep
from megaslm.training.target_weights import weight_rule
from tests.chosen import state_at
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, Unsharded, run_config

GLOBAL_ROWS = 8
STEP = 3
# Forecasts and thresholds: near the cut that k = 0.6 has here, and off it, so that brackets guess wrong.
EXPECTED_CUT: dict[Criterion, float] = {"excess": -0.7, "loss": 3.1}
FORECASTS: dict[Criterion, float] = {**EXPECTED_CUT, "student_entropy": 2.9}
METHODS: tuple[HeadMethod, ...] = ("cache", "bracket", "recompute")
SCOPES: tuple[Scope, ...] = ("batch", "sequence", "microbatch")
WEIGHTS: dict[WeightName, dict[str, object]] = {
    "probability": {"power": 0.5},
    "entropy": {"top_tokens": 7, "power": 2.0},
    "sigmoid": {"temperature": 0.7, "center_nats": 0.3},
    "signed": {"negative": 0.25, "bound_nats": 4.0},
    "column": {"bound_nats": 4.0},
}
DISTILL: dict[str, dict[str, object]] = {
    "": {},
    "selected": {"weight": 0.7},
    "tempered": {"weight": 0.4, "temperature": 2.0},
    "unselected": {"weight": 0.5, "temperature": 1.5, "on": "unselected"},
}
TOP = 5
POLICIES = {
    "top": Policy(),
    "band": Policy(skip_ratio=Decimal("0.15")),
    "stochastic": Policy(temperature=2.0),
    "threshold": Policy(threshold=-0.7),
}
ONE_METHOD_EACH: tuple[Criterion, ...] = ("reference", "entropy", "reference_and_entropy", "random", "student_entropy")
"""Those known beforehand, for which all methods go one way, and one that the head ranks as it ranks losses."""
DOMAIN_RATIOS = (None, Decimal("0.3"))


@dataclass(frozen=True)
class Case:
    scope: Scope
    micro_steps: int
    tied: bool
    criterion: Criterion = "excess"
    mode: Mode = "exact"
    policy: str = "top"
    method: HeadMethod = "bracket"
    max_ref_loss: float | None = None
    span_reach: int | None = None
    starved_rank: bool = False
    recompute: Recompute = "none"
    compiled: bool = False
    stage: int = 3
    window: int | None = None
    keeps_graphs: bool = False
    apart: bool = False
    weight: WeightName = "hard"
    distill: str = ""

    @property
    def slm(self) -> SlmSection:
        """What a run's configuration says of the weights."""
        weight = {"by": self.weight, **WEIGHTS.get(self.weight, {})}
        settings = {"criterion": self.criterion, "keep_ratio": self.keep_ratio, "weight": weight}
        return SlmSection.model_validate({**settings, "distill": DISTILL[self.distill]})

    @property
    def keep_ratio(self) -> Decimal:
        """Less than half where one of two ranks is to come away empty."""
        return Decimal("0.4" if self.starved_rank else "0.6")

    @property
    def state(self) -> SelectionState:
        """The thresholds of the steps before."""
        if self.criterion not in FORECASTS:
            return AT_START
        return state_at(FORECASTS[self.criterion])

    @property
    def data(self) -> object:
        """What decides the losses: cases that share it share their float64 model."""
        return self.tied, self.starved_rank and self.scope, self.window

    @property
    def is_cached(self) -> bool:
        """Whether the gradient comes from exponentials kept in bf16: where the choice waits for the losses."""
        measured_before = self.scope == "batch" and self.mode == "exact" and self.micro_steps > 1
        return self.method == "cache" and self.criterion in FORECASTS and not measured_before

    @property
    def selects_otherwise(self) -> bool:
        """Whether it selects in another way than by the top of a criterion of the reference or of losses."""
        return self.policy != "top" or self.apart or self.criterion == "student_entropy"


def every_case() -> list[Case]:
    """On each engine every scope × criterion; further cases for what they leave out.

    A choice that depends on losses meets every method with every scope. Of the other criteria each engine has every
    pair of criterion, scope and method, and all engines together have every three of them.
    """
    return [case for cases in zip_longest(*map(cases_of, range(len(ENGINES)))) for case in cases if case] + FURTHER


def cases_of(engine: int) -> Iterator[Case]:
    tied, micro_steps = ENGINES[engine]
    for criterion, scope, method in product(("excess", "loss"), SCOPES, METHODS):
        yield Case(scope, micro_steps, tied, criterion=criterion, method=method)
    for criterion, method in product(("excess", "loss"), METHODS):
        yield Case("batch", micro_steps, tied, criterion=criterion, method=method, mode="running")
    for (number, criterion), (place, scope) in product(enumerate(ONE_METHOD_EACH), enumerate(SCOPES)):
        yield Case(scope, micro_steps, tied, criterion=criterion, method=METHODS[(number + place + engine) % 3])
    for place, scope in enumerate(SCOPES):
        yield Case(scope, micro_steps, tied, method=METHODS[(place + engine) % 3], max_ref_loss=4.5)
    for criterion in EXPECTED_CUT if micro_steps > 1 else ():
        yield Case("batch", micro_steps, tied, criterion=criterion, keeps_graphs=True)
    for (number, weight), scope, (place, method) in product(enumerate(WEIGHTS), SCOPES, enumerate(METHODS)):
        criterion = OWN_VALUES[(number + place + engine) % len(OWN_VALUES)]
        yield Case(scope, micro_steps, tied, criterion=criterion, method=method, weight=weight)
    for number, weight in enumerate(WEIGHTS):
        criterion = tuple(EXPECTED_CUT)[(number + engine) % len(EXPECTED_CUT)]
        method = METHODS[(number + engine) % 3]
        yield Case("batch", micro_steps, tied, criterion=criterion, mode="running", method=method, weight=weight)
        if micro_steps > 1:
            yield Case("batch", micro_steps, tied, criterion=criterion, keeps_graphs=True, weight=weight)
    for (number, distill), (place, scope), method in product(enumerate(list(DISTILL)[1:]), enumerate(SCOPES), METHODS):
        criterion = OWN_VALUES[(number + place + engine) % len(OWN_VALUES)]
        yield Case(scope, micro_steps, tied, criterion=criterion, method=method, distill=distill)
    for number, distill in enumerate(list(DISTILL)[1:]):
        criterion = tuple(EXPECTED_CUT)[(number + engine) % len(EXPECTED_CUT)]
        method = METHODS[(number + engine) % 3]
        yield Case("batch", micro_steps, tied, criterion=criterion, mode="running", method=method, distill=distill)
        if micro_steps > 1:
            yield Case("batch", micro_steps, tied, criterion=criterion, keeps_graphs=True, distill=distill)


ENGINES = list(product((False, True), (1, 4)))
"""Tied or not, and micro-steps."""
FURTHER = [
    Case("batch", 1, tied=True, starved_rank=True),
    Case("sequence", 4, tied=False, starved_rank=True),
    Case("batch", 4, tied=False, starved_rank=True),
    Case("batch", 1, tied=True, recompute="full"),
    Case("batch", 4, tied=False, recompute="selective"),
    Case("batch", 4, tied=True, recompute="selective", stage=0),
    Case("batch", 4, tied=True, recompute="full", stage=1),
    Case("batch", 4, tied=True, stage=2),
    # Traced and divided into forward and backward pass as ever, but run by torch: Inductor is slow.
    Case("batch", 4, tied=True, recompute="selective", compiled=True),
    Case("batch", 4, tied=True, compiled=True),
    Case("batch", 4, tied=True, recompute="full", compiled=True, stage=0),
    Case("batch", 4, tied=True, recompute="full", compiled=True, stage=1),
    Case("batch", 4, tied=True, recompute="full", compiled=True, stage=2, keeps_graphs=True),
    Case("batch", 4, tied=False, recompute="selective", compiled=True, window=3, keeps_graphs=True),
    Case("batch", 4, tied=False, recompute="full", window=3),
    Case("batch", 4, tied=True, starved_rank=True, max_ref_loss=4.5, keeps_graphs=True),
    Case("batch", 4, tied=False, recompute="full", keeps_graphs=True),
    Case("batch", 4, tied=False, recompute="selective", stage=2, keeps_graphs=True),
    *(Case("batch", 1, tied=True, method=method, span_reach=2) for method in METHODS),
    Case("batch", 4, tied=True, span_reach=2),
    Case("sequence", 1, tied=True, criterion="loss", span_reach=2),
    Case("batch", 4, tied=True, criterion="reference_and_entropy", span_reach=2),
    Case("batch", 4, tied=False, criterion="student_entropy", keeps_graphs=True),
    Case("batch", 1, tied=True, policy="band", method="cache"),
    Case("batch", 1, tied=True, policy="stochastic"),
    Case("batch", 1, tied=True, policy="threshold", method="recompute"),
    Case("batch", 4, tied=True, policy="threshold", max_ref_loss=4.5, keeps_graphs=True),
    Case("sequence", 4, tied=True, policy="band", criterion="loss"),
    Case("batch", 1, tied=True, apart=True),
    Case("batch", 4, tied=True, apart=True, policy="stochastic"),
]


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


@dataclass(frozen=True)
class Batch:
    """Tokens (8, L+1), top tokens (8, L, K+1) and (8, L, K), and (8, L) of the others; the second half of the rows goes
    to the second of two ranks."""

    tokens: Tensor
    ref_loss: Tensor
    ref_entropy: Tensor
    weight: Tensor
    ref_top_logprob: Tensor
    ref_top_id: Tensor

    @classmethod
    def of(cls, case: Case) -> "Batch":
        generator = torch.Generator().manual_seed(7)
        tokens = torch.randint(3, VOCAB_SIZE, (GLOBAL_ROWS, SEQ_LEN + 1), generator=generator)
        tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = EOS_ID
        ref_loss = 4.2 + 2.0 * torch.randn(GLOBAL_ROWS, SEQ_LEN, generator=generator)
        ref_entropy = torch.rand(GLOBAL_ROWS, SEQ_LEN, generator=generator) * 4.0
        weight = torch.rand(GLOBAL_ROWS, SEQ_LEN, generator=generator) * 3.0 - 1.0
        if case.starved_rank and case.scope == "batch":
            ref_loss[GLOBAL_ROWS // 2 :] = 1000.0
        elif case.starved_rank:
            tokens[GLOBAL_ROWS // 2 :] = EOS_ID
        of_all = torch.randn(GLOBAL_ROWS, SEQ_LEN, VOCAB_SIZE, generator=generator)
        # The target is often, but not always, among the most likely tokens.
        of_all.scatter_add_(2, tokens[:, 1:, None], 2.0 * torch.rand(GLOBAL_ROWS, SEQ_LEN, 1, generator=generator))
        top = of_all.log_softmax(2).topk(TOP)
        rest = (1 - top.values.exp().sum(2, keepdim=True)).log()
        stored = torch.cat([top.values, rest], 2).half()
        return cls(tokens, ref_loss, ref_entropy, weight, stored, top.indices.int())

    @property
    def valid(self) -> Tensor:
        return self.tokens[:, :-1] != EOS_ID

    @property
    def keys(self) -> Tensor:
        return target_keys(torch.arange(GLOBAL_ROWS), 0, SEQ_LEN)

    def share(self, world: World, micro_batch_rows: int) -> Iterator[MicroBatch]:
        mine = torch.arange(GLOBAL_ROWS).chunk(world.size)[world.rank]
        for rows in mine.split(micro_batch_rows):
            yield MicroBatch(
                self.tokens[rows],
                rows,
                rows % 2,
                self.ref_loss[rows],
                ref_entropy=self.ref_entropy[rows],
                visit=0,
                weight=self.weight[rows],
                ref_top_logprob=self.ref_top_logprob[rows],
                ref_top_id=self.ref_top_id[rows],
            )


class Definition:
    """The definition, in float64: rank by sorting, sum, divide once by the global count."""

    def __init__(self, case: Case) -> None:
        architecture = config_of(case, 1).model.from_scratch
        assert architecture is not None
        lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
        lm.config.sliding_window = case.window
        draw_weights(lm, seed=3, standard_deviation=0.3, sharding=Unsharded())
        self.batch = Batch.of(case)
        self.parameters = {f"lm.{name}": parameter for name, parameter in lm.double().named_parameters()}
        measured = [documents_apart(lm, row) for row in self.batch.tokens]
        losses, entropies, logits = (torch.stack(part) for part in zip(*measured, strict=True))
        self.losses, self.entropies, self.logits = losses, entropies.detach(), logits
        self.top_logits = logits.detach().sort(-1, descending=True).values

    def gradients(self, case: Case, world_size: int) -> dict[str, Tensor]:
        selected = self.selected(case, world_size)
        if case.starved_rank:
            assert not selected[GLOBAL_ROWS // 2 :].any()
        denominator = max(1, int(selected.sum()))
        if case.mode == "running":
            denominator = float(case.keep_ratio) * int(self.batch.valid.sum())
        total = (self.mixed(case, selected) * self.weights(case, selected)).sum()
        found = torch.autograd.grad(total / denominator, list(self.parameters.values()), retain_graph=True)
        return dict(zip(self.parameters, found, strict=True))

    def mixed(self, case: Case, selected: Tensor) -> Tensor:
        """(8, L) float64: the cross-entropies, mixed with divergences by the formula of docs/concepts.md."""
        setting = case.slm.distill
        if not setting.weight:
            return self.losses
        of_all = self.logits.softmax(-1)
        top = of_all.gather(-1, self.batch.ref_top_id.long())
        buckets = torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1)
        model, reference = (
            (each ** (1 / setting.temperature)) / (each ** (1 / setting.temperature)).sum(-1, keepdim=True)
            for each in (buckets, self.batch.ref_top_logprob.double().exp())
        )
        divergences = setting.temperature**2 * (reference * (reference / model).log()).sum(-1)
        if setting.on == "selected":
            return (1 - setting.weight) * self.losses + setting.weight * divergences
        return torch.where(selected, self.losses, setting.weight * divergences)

    def weights(self, case: Case, selected: Tensor) -> Tensor:
        """(8, L) float64, by the formulas of docs/concepts.md."""
        losses, batch, setting = self.losses.detach(), self.batch, case.slm.weight
        top = torch.softmax(self.top_logits[..., : setting.top_tokens], -1)
        own = {
            "excess": losses - batch.ref_loss,
            "loss": losses,
            "reference": -batch.ref_loss.double(),
            "entropy": -batch.ref_entropy.double(),
        }.get(case.criterion, losses)
        can_unlearn = losses < (setting.bound_nats or 0.0)
        stored = batch.weight.double()
        of_selected = {
            "hard": torch.ones_like(losses),
            "probability": torch.exp(-losses) ** setting.power,
            "entropy": (-(top * top.log()).sum(-1) / math.log(setting.top_tokens)) ** setting.power,
            "sigmoid": 1 / (1 + torch.exp((setting.center_nats - own) / (setting.temperature or 1.0))),
            "signed": torch.ones_like(losses),
            "column": stored.where((stored >= 0) | can_unlearn, 0.0),
        }[case.weight]
        if case.distill == "unselected":
            return batch.valid.double()
        of_others = -(setting.negative or 0.0) * (batch.valid & can_unlearn).double()
        return of_selected.where(selected, of_others)

    def selected(self, case: Case, world_size: int) -> Tensor:
        batch, losses = self.batch, self.losses.detach()
        eligible = batch.valid & (batch.ref_loss <= (case.max_ref_loss or float("inf")))
        values = {
            "excess": losses - batch.ref_loss,
            "loss": losses,
            "student_entropy": self.entropies,
            "reference": -batch.ref_loss.double(),
            "entropy": -batch.ref_entropy.double(),
            "random": (hash_of(batch.keys, 0, STEP) >> 7).double(),
        }
        if case.span_reach is not None:
            values = {name: self.means_of_spans(own, case.span_reach) for name, own in values.items()}
        if case.criterion == "reference_and_entropy":
            return self.selected(replace(case, criterion="reference"), world_size) & self.selected(
                replace(case, criterion="entropy"), world_size
            )
        if case.mode == "running":
            return eligible & (values[case.criterion] >= EXPECTED_CUT[case.criterion])
        policy, own = POLICIES[case.policy], values[case.criterion]
        if policy.threshold is not None:
            return eligible & (own >= policy.threshold)
        if policy.temperature is not None:
            uniform = (hash_of(batch.keys, 0, STEP).double() + 0.5) / (1 << HASH_BITS)
            own = own / policy.temperature - (-uniform.log()).log()
        return top_of_groups(case, groups(case, world_size), own, batch.valid, eligible)

    def means_of_spans(self, values: Tensor, reach: int) -> Tensor:
        """The means over the valid targets at most `reach` places away in the same document."""
        document = (self.batch.tokens[:, :-1] == EOS_ID).cumsum(1)
        places = torch.arange(SEQ_LEN)
        near = (places[:, None] - places).abs() <= reach
        span = near & (document[:, :, None] == document[:, None]) & self.batch.valid[:, None]
        return torch.where(span, values[:, None].double(), 0.0).sum(2) / span.sum(2).clamp(min=1)


def top_of_groups(
    case: Case, row_groups: list[tuple[list[int], Decimal]], values: Tensor, valid: Tensor, eligible: Tensor
) -> Tensor:
    selected = torch.zeros_like(valid)
    for group, ratio in row_groups:
        places = [(row, place) for row in group for place in range(SEQ_LEN)]
        count, half = sum(bool(valid[place]) for place in places), Decimal("0.5")
        skip = int(POLICIES[case.policy].skip_ratio * count + half)
        candidates = sorted((-float(values[place]), *place) for place in places if eligible[place])
        for _, row, place in candidates[skip : skip + int(ratio * count + half)]:
            selected[row, place] = True
    return selected


def groups(case: Case, world_size: int) -> list[tuple[list[int], Decimal]]:
    """The rows among which a target must rank, as the definition of the scope has them, with k of each group."""
    rows = list(range(GLOBAL_ROWS))
    if case.apart:
        return [(rows[number::2], ratio or case.keep_ratio) for number, ratio in enumerate(DOMAIN_RATIOS)]
    if case.scope == "batch":
        return [(rows, case.keep_ratio)]
    size = 1 if case.scope == "sequence" else GLOBAL_ROWS // world_size // case.micro_steps
    return [(rows[start : start + size], case.keep_ratio) for start in range(0, GLOBAL_ROWS, size)]


def documents_apart(lm: torch.nn.Module, row: Tensor) -> tuple[Tensor, Tensor]:
    """A row's losses, the entropies of its predictions, and the logits. Each document is run by itself."""
    starts = [0, *(place + 1 for place in range(SEQ_LEN) if row[place] == EOS_ID)]
    ends = [*starts[1:], SEQ_LEN]
    losses, entropies, all_logits = [], [], []
    for start, end in zip(starts, ends, strict=True):
        if start < end:
            logits = lm(row[None, start:end]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, row[start + 1 : end + 1], reduction="none"))
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
            all_logits.append(logits)
    return torch.cat(losses), torch.cat(entropies), torch.cat(all_logits)


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


def config_of(case: Case, world_size: int) -> RunConfig:
    family = "llama" if case.window is None else "mistral"
    return run_config(
        Path("unused"),
        Path("unused"),
        model={"from_scratch": {**SHAPE, "tie_embeddings": case.tied, "family": family}},
        train={"micro_batch_rows": GLOBAL_ROWS // world_size // case.micro_steps},
        zero={"stage": case.stage},
    )


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
