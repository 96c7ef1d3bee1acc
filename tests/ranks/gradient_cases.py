"""Of test_gradients: what a step may be, and the rows that it reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import product, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from megaslm.config.schema import Recompute, RunConfig
from megaslm.config.selection import SlmSection
from megaslm.config.weighting import OWN_VALUES, WeightName
from megaslm.engine.distributed import World
from megaslm.slm.criterion import Criterion
from megaslm.slm.keys import target_keys
from megaslm.slm.rule import Mode, Scope
from megaslm.slm.selection import Policy
from megaslm.slm.threshold import AT_START, SelectionState
from megaslm.slm.token_loss import HeadMethod
from megaslm.stream.loader import MicroBatch
from tests.chosen import state_at
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, run_config

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
                visit=0,
                columns={name: column[rows] for name, column in vars(self).items() if name != "tokens"},
            )


def config_of(case: Case, world_size: int) -> RunConfig:
    family = "llama" if case.window is None else "mistral"
    return run_config(
        Path("unused"),
        Path("unused"),
        model={"from_scratch": {**SHAPE, "tie_embeddings": case.tied, "family": family}},
        train={"micro_batch_rows": GLOBAL_ROWS // world_size // case.micro_steps},
        zero={"stage": case.stage},
    )
