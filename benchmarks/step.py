"""A whole optimiser step of SLM against one of CLM, and against a reference model that runs beside the training.

And a step on every target with weights that follow from the model's predictions, and one of SLM with distillation from
the 16 most likely tokens of a reference.
"""

import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import torch
from harness.report import Bar, options, report
from harness.steps import EOS_ID, Steps, frequent_and_rare, shape_of, undivided_lm, with_batch
from harness.timing import Times, in_turns
from torch import Tensor

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import join_world, leave_world
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.criterion import formula_of
from megaslm.slm.distillation import DistilledWeights
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, SelectionRule
from megaslm.slm.threshold import EXACT_STEPS
from megaslm.slm.weights import EntropyWeights, ProbabilityWeights, SigmoidWeights, WeightedObjective, WeightRule

ROOT = Path(__file__).parents[1]
K60 = KeepRatio(Decimal("0.6"))
EVERY = SelectionRule(KeepRatio(Decimal(1)))
WEIGHTS: dict[str, WeightRule] = {
    "probability": lambda _: ProbabilityWeights(1.0),
    "entropy": lambda _: EntropyWeights(1.0, 20),
    "sigmoid": lambda targets: SigmoidWeights(formula_of("excess"), 1.0, 0.0, targets),
}

DISTILLATION: WeightRule = partial(DistilledWeights, 0.5, 1.0, False)
TOP_LOGITS = 16


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    world = join_world()
    rows = 8 if chosen.quick else 64
    base = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
    reference = SelectiveLM(undivided_lm(base).eval(), eos_id=EOS_ID, document_isolation=True)
    alternatives: dict[str, Callable[[], object]] = {}
    for micro_steps in (1, 2):
        draw_tokens = frequent_and_rare(shape_of(base).vocab_size, world.device)
        batch = with_batch(base, rows // micro_steps, micro_steps)
        steps = Steps(batch, world, draw_tokens)
        with_top = Steps(batch, world, draw_tokens, TOP_LOGITS)
        exact, running = SelectiveObjective(SelectionRule(K60)), SelectiveObjective(SelectionRule(K60, mode="running"))
        for _ in range(EXACT_STEPS):
            steps.step(running)
        online = SelectiveObjective(SelectionRule(K60))
        suffix = f"{micro_steps} micro-step{'s' if micro_steps > 1 else ''}"
        distilled = WeightedObjective(SelectiveObjective(SelectionRule(K60)), DISTILLATION)
        ways: list[tuple[str, Steps, Objective, Callable[[Tensor], Tensor] | None]] = [
            ("CLM", steps, CausalObjective(), None),
            ("SLM exact", steps, exact, None),
            ("SLM running", steps, running, None),
            ("SLM exact, reference online", steps, online, lambda tokens: reference.measure(tokens).losses),
            ("SLM exact, distilled", with_top, distilled, None),
            *(
                (by, steps, WeightedObjective(SelectiveObjective(EVERY), weights), None)
                for by, weights in WEIGHTS.items()
            ),
        ]
        for name, of, objective, measure in ways:
            alternatives[f"{name}, {suffix}"] = partial(of.step, objective, measure)
    times = in_turns(alternatives, repetitions=3 if chosen.quick else 11, clock=time.process_time)
    report(
        f"What does an SLM step cost? The demo's model (1.26M parameters), {rows} rows of 128, k=0.6, one CPU thread, "
        "one rank of ZeRO-3, processor time",
        [
            {
                "step": name,
                "seconds": taken.median,
                "to CLM": taken.over(_causal(times, name)),
                "from – to": taken.spread(_causal(times, name)),
            }
            for name, taken in times.items()
        ],
        [
            Bar("SLM exact to CLM, 1 micro-step", _ratio(times, "SLM exact", "CLM", "1 micro-step"), 1.0),
            *(
                Bar(f"weights by {by} to CLM, 1 micro-step", _ratio(times, by, "CLM", "1 micro-step"), 1.1)
                for by in WEIGHTS
            ),
            Bar("SLM running to CLM, 2 micro-steps", _ratio(times, "SLM running", "CLM", "2 micro-steps"), 1.0),
            Bar(
                "SLM with stored reference losses to SLM with the reference online",
                _ratio(times, "SLM exact", "SLM exact, reference online", "1 micro-step"),
                0.8,
            ),
        ],
        chosen,
    )
    leave_world()


def _causal(times: dict[str, Times], name: str) -> Times:
    return times[f"CLM, {name.rsplit(', ', 1)[1]}"]


def _ratio(times: dict[str, Times], one: str, other: str, suffix: str) -> float:
    return times[f"{one}, {suffix}"].over(times[f"{other}, {suffix}"])


if __name__ == "__main__":
    main()
