"""The host reads the device at most once a micro-step, and never for a chunk of the head.

Counted on the CPU, by what would wait for a GPU there (tests/device_reads.py).
"""

from collections.abc import Callable, Hashable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import megaslm.slm.choice
import megaslm.slm.head_pass
import megaslm.training.step
from megaslm.dataset.packing import document_bounds
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import HeadSettings, SelectiveLM
from megaslm.slm.choice import Choice, Deferred, HeadOutput
from megaslm.slm.criterion import Criterion, Formula, formula_of
from megaslm.slm.measure import Measure, Measured
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, Scope, SelectionRule
from megaslm.slm.selection import Policy
from megaslm.slm.spans import SpanRule
from megaslm.slm.threshold import AT_START
from megaslm.slm.token_loss import HeadMethod
from megaslm.slm.weights import (
    ColumnWeights,
    EntropyWeights,
    ProbabilityWeights,
    SigmoidWeights,
    SignedWeights,
    WeightedObjective,
    WeightRule,
)
from megaslm.stream.loader import MicroBatch
from megaslm.training.step import TrainStep
from tests.chosen import state_at
from tests.device_reads import host_reads
from tests.pairwise import pairwise
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, Unsharded, run_config

GLOBAL_ROWS = 4
STEPS = 2
"""The first has no forecast unless it is given one, the second has one."""
CHUNK_ROWS = 4
MICRO_STEPS = [1, 4]
METHODS: list[HeadMethod] = ["cache", "bracket", "recompute"]
CRITERIA: list[Criterion] = [
    "excess",
    "reference",
    "entropy",
    "reference_and_entropy",
    "random",
    "loss",
    "student_entropy",
]
SCOPES: list[Scope] = ["batch", "sequence", "microbatch"]
KEEP = KeepRatio(Decimal("0.6"))
RULES = {
    **{f"{score}-{scope}": SelectionRule(KEEP, score, scope) for score in CRITERIA for scope in SCOPES},
    "excess-running": SelectionRule(KEEP, "excess", mode="running"),
    "loss-running": SelectionRule(KEEP, "loss", mode="running"),
    "capped": SelectionRule(KEEP, max_ref_loss=4.5),
    "reference-alone": SelectionRule(KEEP, "reference", measure_rest=False),
    "band": SelectionRule(KEEP, policy=Policy(skip_ratio=Decimal("0.2"))),
    "stochastic": SelectionRule(KEEP, policy=Policy(temperature=0.5)),
    "threshold": SelectionRule(KEEP, policy=Policy(threshold=-0.7)),
    "threshold-reference": SelectionRule(KEEP, "reference", policy=Policy(threshold=-4.0)),
    "expression": SelectionRule(KEEP, Formula(("loss", "ref_loss", "-", "entropy", 2.0, "/", "max()"))),
    "expression-running": SelectionRule(KEEP, Formula(("loss", "ref_loss", "weight", "*", "-")), mode="running"),
    "expression-of-columns": SelectionRule(KEEP, Formula(("ref_loss", "ref_entropy", 0.5, "*", "-"))),
    "warming-up": SelectionRule(KeepRatio(Decimal("0.6"), warmup_tokens=1000)),
}


def needs_model(rule: SelectionRule) -> bool:
    return rule.criterion in ("excess", "loss", "student_entropy") or (
        isinstance(rule.criterion, Formula) and rule.criterion.needs_model
    )


def by_entropy(rule: SelectionRule) -> bool:
    return needs_model(rule) and "entropy" in formula_of(rule.criterion).names


CASES = {
    f"{name}-{method}-{micro_steps}": (rule, method, micro_steps)
    for name, rule in RULES.items()
    for method in METHODS
    for micro_steps in MICRO_STEPS
    # A choice that does not wait for the losses has no use for a method.
    if needs_model(rule) or method == "bracket"
}


def values_of(case: str) -> dict[str, Hashable]:
    rule, method, micro_steps = CASES[case]
    return {**vars(rule), "method": method, "micro_steps": micro_steps}


QUICK = pairwise(list(CASES), values_of)
"""Any two values that meet in a case meet in one of these; the others are slow."""


class PlainEngine:
    """What train_step asks of an engine, in plain SGD at each micro-step: DeepSpeed's own reads are not ours."""

    def __init__(self, model: SelectiveLM) -> None:
        self.model = model
        self.norm = torch.zeros(())

    def forward(self, tokens: Tensor, choice: Choice | Deferred, document_bounds: Tensor | None) -> HeadOutput:
        return cast(HeadOutput, self.model(tokens, choice, document_bounds))

    def measure(self, tokens: Tensor, document_bounds: Tensor | None, what: Measure) -> Measured:
        with torch.no_grad():
            return cast(Measured, self.model(tokens, what, document_bounds))

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, lr: float) -> bool:
        gradients = [cast(Tensor, parameter.grad) for parameter in self.model.parameters()]
        self.norm = nn.utils.get_total_norm(gradients)
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            # Unseen by autograd, which may still have graphs of later micro-batches.
            parameter.data.sub_(gradient, alpha=lr)
            parameter.grad = None
        return False

    def gradient_norm(self) -> Tensor:
        return self.norm


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[World]:
    """A process group of this process alone, which leaves nothing in the environment."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def model() -> SelectiveLM:
    architecture = run_config(
        Path("unused"), Path("unused"), model={"from_scratch": {**SHAPE, "num_layers": 1}}
    ).model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=Unsharded())
    return SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many rows go through the head at once."""

    def set_rows(rows: int) -> None:
        monkeypatch.setattr(megaslm.slm.head_pass, "_LOGIT_BYTES_ON_CPU", rows * VOCAB_SIZE * 4)

    return set_rows


def micro_batches(micro_steps: int) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCAB_SIZE, (GLOBAL_ROWS, SEQ_LEN + 1), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = EOS_ID
    ref_loss = 4.2 + 2.0 * torch.randn(GLOBAL_ROWS, SEQ_LEN, generator=generator)
    ref_entropy = torch.rand(GLOBAL_ROWS, SEQ_LEN, generator=generator) * 4.0
    target_mask = torch.rand(GLOBAL_ROWS, SEQ_LEN, generator=generator) < 0.9
    return [
        MicroBatch(
            tokens[rows],
            rows,
            rows % 2,
            visit=0,
            columns={
                "ref_loss": ref_loss[rows],
                "ref_entropy": ref_entropy[rows],
                "target_mask": target_mask[rows],
                "weight": ref_entropy[rows] - 1.0,
            },
            document_bounds=torch.from_numpy(document_bounds(tokens[rows, :-1].numpy(), EOS_ID)),
        )
        for rows in torch.arange(GLOBAL_ROWS).chunk(micro_steps)
    ]


def reads_of_steps(
    model: SelectiveLM,
    objective: Objective,
    micro_steps: int,
    world: World,
    *,
    keeps_graphs: bool = False,
    by_entropy: bool = False,
    spans: SpanRule | None = None,
) -> list[list[str]]:
    """Where each of the steps read the device."""
    engine = cast(ZeroEngine, PlainEngine(model))
    train_step = TrainStep(
        engine,
        objective,
        world,
        EOS_ID,
        domain_count=2,
        may_repeat_rows=True,
        keeps_graphs=keeps_graphs,
        by_entropy=by_entropy,
        spans=spans,
    )
    batches = micro_batches(micro_steps)
    steps = []
    for step in range(1, STEPS + 1):
        with host_reads() as places:
            train_step(batches, Moment(step, tokens=0), learning_rate=0.01)
        steps.append(places)
    return steps


@pytest.mark.parametrize(
    ("rule", "method", "micro_steps"),
    [pytest.param(*values, id=case, marks=[] if case in QUICK else pytest.mark.slow) for case, values in CASES.items()],
)
def test_selective_training_reads_at_most_once_a_micro_step(
    model: SelectiveLM,
    world: World,
    in_chunks: Callable[[int], None],
    rule: SelectionRule,
    method: HeadMethod,
    micro_steps: int,
) -> None:
    model.lm.lm_head.settings = HeadSettings(method)
    start = state_at(0.0) if rule.mode == "running" else AT_START
    whole = reads_of_steps(model, SelectiveObjective(rule, start), micro_steps, world, by_entropy=by_entropy(rule))
    assert all(len(places) <= micro_steps for places in whole), whole
    in_chunks(CHUNK_ROWS)
    chunked = reads_of_steps(model, SelectiveObjective(rule, start), micro_steps, world, by_entropy=by_entropy(rule))
    assert chunked == whole


WEIGHTS: dict[str, WeightRule] = {
    "probability": lambda _: ProbabilityWeights(1.0),
    "entropy": lambda _: EntropyWeights(1.0, 20),
    "sigmoid": lambda targets: SigmoidWeights(formula_of("excess"), 1.0, 0.0, targets),
    "signed": lambda targets: SignedWeights(0.1, 4.0, targets),
    "column": lambda targets: ColumnWeights(4.0, targets),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_computed_without_another_read(
    model: SelectiveLM, world: World, in_chunks: Callable[[int], None], name: str, method: HeadMethod
) -> None:
    in_chunks(CHUNK_ROWS)
    model.lm.lm_head.settings = HeadSettings(method)
    for rule, reads in ((SelectionRule(KEEP), 1), (SelectionRule(KeepRatio(Decimal(1))), 0)):
        objective = WeightedObjective(SelectiveObjective(rule), WEIGHTS[name])
        assert [len(places) for places in reads_of_steps(model, objective, 1, world)] == [reads] * STEPS
    kept = WeightedObjective(SelectiveObjective(SelectionRule(KEEP)), WEIGHTS[name])
    steps = reads_of_steps(model, kept, max(MICRO_STEPS), world, keeps_graphs=True)
    assert [len(places) for places in steps] == [1] * STEPS


@pytest.mark.parametrize("criterion", ["excess", "loss"])
def test_kept_graphs_are_read_once_a_step(
    model: SelectiveLM, world: World, in_chunks: Callable[[int], None], criterion: Criterion
) -> None:
    in_chunks(CHUNK_ROWS)
    objective = SelectiveObjective(SelectionRule(KEEP, criterion))
    steps = reads_of_steps(model, objective, max(MICRO_STEPS), world, keeps_graphs=True)
    assert [len(places) for places in steps] == [1] * STEPS


@pytest.mark.parametrize("rule", [SelectionRule(KEEP), SelectionRule(KEEP, mode="running")], ids=["exact", "running"])
def test_means_of_spans_are_ranked_without_another_read(
    model: SelectiveLM, world: World, in_chunks: Callable[[int], None], rule: SelectionRule
) -> None:
    in_chunks(CHUNK_ROWS)
    objective = SelectiveObjective(rule, state_at(0.0))
    steps = reads_of_steps(model, objective, 1, world, spans=SpanRule(EOS_ID, 2))
    assert [len(places) for places in steps] == [1] * STEPS


@pytest.mark.parametrize("micro_steps", MICRO_STEPS)
def test_causal_training_never_reads(
    model: SelectiveLM, world: World, in_chunks: Callable[[int], None], micro_steps: int
) -> None:
    in_chunks(CHUNK_ROWS)
    assert reads_of_steps(model, CausalObjective(), micro_steps, world) == [[]] * STEPS


@pytest.mark.parametrize("objective", [CausalObjective(), SelectiveObjective(SelectionRule(KEEP))], ids=["clm", "slm"])
def test_rows_without_document_isolation_read_no_more(
    model: SelectiveLM, world: World, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    monkeypatch.setattr(model, "document_isolation", False)
    allowed = 0 if isinstance(objective, CausalObjective) else 1
    steps = reads_of_steps(model, objective, 1, world)
    assert all(len(places) <= allowed for places in steps), steps


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (megaslm.slm.head_pass.HeadPass, "softmax", GLOBAL_ROWS * SEQ_LEN // CHUNK_ROWS),
        (megaslm.slm.choice, "select_quota", 1),
        (megaslm.training.step, "selection_sums", 1),
        (SelectiveObjective, "end_step", 1),
    ],
    ids=["a chunk", "a choice", "a micro-step", "a step"],
)
def test_a_read_too_many_is_found(
    model: SelectiveLM,
    world: World,
    in_chunks: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    calls: int,
) -> None:
    in_chunks(CHUNK_ROWS)
    model.lm.lm_head.settings = HeadSettings("cache")
    before = reads_of_steps(model, SelectiveObjective(SelectionRule(KEEP)), 1, world)
    function = getattr(owner, name)

    def reading(*args: object, **kwargs: object) -> object:
        torch.ones(1).item()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, reading)
    after = reads_of_steps(model, SelectiveObjective(SelectionRule(KEEP)), 1, world)
    assert [len(places) for places in after] == [len(places) + calls for places in before]
    assert all(len(places) > 1 for places in after)


NUMBERS = torch.arange(4)
EVEN = NUMBERS % 2 == 0
READS: dict[str, Callable[[], object]] = {
    "item": lambda: NUMBERS[0].item(),
    "tolist": lambda: NUMBERS.tolist(),
    "cpu": lambda: NUMBERS.cpu(),
    "numpy": lambda: NUMBERS.numpy(),
    "bool": lambda: bool(NUMBERS[1]),
    "int": lambda: int(NUMBERS[1]),
    "float": lambda: float(NUMBERS[1]),
    "index": lambda: range(9)[NUMBERS[1]],
    "if any": lambda: 1 if EVEN.any() else 0,
    "equal": lambda: NUMBERS.equal(EVEN),
    "allclose": lambda: NUMBERS.allclose(NUMBERS),
    "nonzero": lambda: NUMBERS.nonzero(),
    "argwhere": lambda: NUMBERS.argwhere(),
    "where": lambda: torch.where(EVEN),
    "rows by a mask": lambda: NUMBERS[EVEN],
    "writing by a mask": lambda: NUMBERS.clone().index_put_((EVEN,), NUMBERS[:2]),
    "masked_select": lambda: NUMBERS.masked_select(EVEN),
    "unique": lambda: NUMBERS.unique(),
    "unique_consecutive": lambda: NUMBERS.unique_consecutive(),
    "bincount": lambda: NUMBERS.bincount(),
    "repeat_interleave": lambda: NUMBERS.repeat_interleave(NUMBERS),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_to_read_counts_once(read: Callable[[], object]) -> None:
    with host_reads() as places:
        read()
    assert len(places) == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda: NUMBERS.where(EVEN, 0).sum(),
        lambda: NUMBERS.clone().index_put_((NUMBERS,), NUMBERS),
        lambda: NUMBERS[NUMBERS].masked_fill(EVEN, 0),
        lambda: EVEN.nonzero_static(size=2),
        lambda: NUMBERS.repeat_interleave(NUMBERS, output_size=6),
        lambda: NUMBERS.topk(2).values.median(),
    ],
)
def test_what_does_not_wait_does_not_count(work: Callable[[], object]) -> None:
    with host_reads() as places:
        work()
    assert not places
