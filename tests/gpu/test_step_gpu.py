"""A whole step on a GPU waits for the device at most once a micro-step, where it reads how many targets were chosen."""

from decimal import Decimal
from typing import cast

import pytest
import torch
from torch import Tensor

from megaslm.model.selective_lm import HeadSettings, SelectiveHead
from megaslm.slm import objective, token_loss
from megaslm.slm.choice import Choice, HeadOutput, Selected
from megaslm.slm.keys import target_keys
from megaslm.slm.measure import Measured, measure
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.targets import Targets
from megaslm.slm.telemetry import selection_sums
from megaslm.slm.threshold import EXACT_STEPS
from megaslm.slm.topk import on_this_rank_alone
from tests.chosen import denominator_of, joined
from tests.waits import when_the_host_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

ROWS, LENGTH, WIDTH, VOCAB = 16, 256, 64, 1000
K60 = KeepRatio(Decimal("0.6"))
RULES = {
    "exact": SelectionRule(K60),
    "running": SelectionRule(K60, mode="running"),
    "sequence": SelectionRule(K60, scope="sequence"),
    "reference": SelectionRule(K60, criterion="reference"),
    "intersection": SelectionRule(K60, criterion="reference_and_entropy"),
    "random": SelectionRule(K60, criterion="random"),
    "capped": SelectionRule(K60, max_ref_loss=7.5),
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reads that are allowed, as they happen: in the head after the choice, in planning where it is known."""
    happened: list[str] = []
    read_rows, known = token_loss._read_rows, objective.StepPlanner._known

    def head_reads(selected: Selected, wanted: Tensor) -> Tensor:
        happened.append("head")
        with when_the_host_waits("default"):
            return read_rows(selected, wanted)

    def plan_reads(self: objective.StepPlanner, *args: object, **kwargs: object) -> tuple[Choice, ...]:
        happened.append("plan")
        with when_the_host_waits("default"):
            return known(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(token_loss, "_read_rows", head_reads)
    monkeypatch.setattr(objective.StepPlanner, "_known", plan_reads)
    return happened


def drawn(step: int, micro_steps: int) -> list[tuple[Targets, Tensor, Tensor]]:
    generator = torch.Generator("cuda").manual_seed(step)
    parts = []
    for number in range(micro_steps):
        shape = (ROWS // micro_steps, LENGTH)
        rows = torch.arange(shape[0], device="cuda") + (step * micro_steps + number) * shape[0]
        nats = [7.0 + torch.randn(shape, generator=generator, device="cuda") for _ in range(2)]
        valid = torch.rand(shape, generator=generator, device="cuda") < 0.95
        hidden = torch.randn(shape[0] * LENGTH, WIDTH, generator=generator, device="cuda").bfloat16()
        labels = torch.randint(0, VOCAB, (shape[0] * LENGTH,), generator=generator, device="cuda")
        parts.append(
            (
                Targets(valid, target_keys(rows, 0, LENGTH), {"ref_loss": nats[0], "ref_entropy": nats[1]}),
                hidden,
                labels,
            )
        )
    return parts


def run_step(objective: Objective, parts: list[tuple[Targets, Tensor, Tensor]], weight: Tensor, step: int) -> Tensor:
    """A step as training makes it, its trunk left out."""

    def measured(number: int) -> Measured:
        targets, hidden, labels = parts[number]
        return measure(hidden, weight.detach(), labels).view_as(targets.valid)

    targets = joined([part[0] for part in parts])
    plan = objective.plan_step(targets, len(parts), Moment(step, 0), measured, on_this_rank_alone)
    outputs = []
    for (part, hidden, labels), choice in zip(parts, plan.choices, strict=True):
        output = head(hidden, weight, labels, choice).view_as(part.valid)
        (output.total / denominator_of(plan).clamp(min=1)).backward()
        outputs.append(output._replace(total=output.total.detach()))
    whole = HeadOutput.of_step(outputs)
    objective.end_step(plan, whole)
    domain = torch.zeros(len(targets.valid), dtype=torch.int64, device="cuda")
    return selection_sums(whole, whole.mask, targets, domain, 1).sum()


def head(hidden: Tensor, weight: Tensor, labels: Tensor, choice: Choice) -> HeadOutput:
    module = SelectiveHead(WIDTH, VOCAB, bias=False, device="meta")
    module.settings = HeadSettings("bracket")
    module.weight = torch.nn.Parameter(weight.detach())
    return cast(HeadOutput, module(hidden, labels, choice))


@pytest.mark.parametrize("micro_steps", [1, 2])
@pytest.mark.parametrize("name", ["clm", *RULES])
def test_a_step_waits_once_a_micro_step_at_most(name: str, micro_steps: int, reads: list[str]) -> None:
    def objective(resumed: bool) -> Objective:
        if name == "clm":
            return CausalObjective()
        before = SelectiveObjective(RULES[name])
        for step in range(EXACT_STEPS):
            run_step(before, drawn(0, micro_steps), weight, step + 1)
        return SelectiveObjective(RULES[name], before.state()) if resumed else SelectiveObjective(RULES[name])

    weight = torch.randn(VOCAB, WIDTH, device="cuda").bfloat16() * WIDTH**-0.5
    for resumed in (False, True):
        trained = objective(resumed)
        # Kernels are built at their first call, which may wait.
        run_step(objective(resumed), drawn(1, micro_steps), weight, 1)
        for step in (1, 2, 3):
            parts = drawn(step, micro_steps)
            reads.clear()
            torch.cuda.synchronize()
            with when_the_host_waits("error"):
                run_step(trained, parts, weight, step)
            assert len(reads) <= (0 if name == "clm" else micro_steps)
