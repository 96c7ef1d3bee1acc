"""A whole optimiser step of SLM against one of CLM, and against a reference model that runs beside the training."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from pathlib import Path

import torch
from harness.report import Bar, options, report
from harness.timing import Times, in_turns
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.load import load
from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World, join_world, leave_world
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.load import Sharding, build_from_shape, draw_weights
from megaslm.model.selective_lm import CausalLM, SelectiveLM
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.threshold import EXACT_STEPS
from megaslm.stream.loader import MicroBatch
from megaslm.training.step import TrainStep

ROOT = Path(__file__).parents[1]
EOS_ID = 2
K60 = KeepRatio(Decimal("0.6"))


class Whole:
    """A model that no one divides."""

    def whole(self, parameters: object) -> AbstractContextManager[object]:
        return nullcontext()


class Trainer:
    """The demo's model under its engine, with as many micro-steps as wanted, at a rate that changes little.

    `rows`: of a step, over all ranks. `recompute`: whether decoder layers are recomputed in the backward pass.
    """

    def __init__(self, micro_steps: int, world: World, rows: int, *, recompute: bool = False) -> None:
        base = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
        self.seq_len = base.data.seq_len
        train = base.train.model_copy(
            update={"micro_batch_rows": rows // micro_steps // world.size, "global_batch_tokens": rows * self.seq_len}
        )
        config = base.model_copy(update={"train": train})
        self.plan: BatchPlan = plan_batches(config, world.size)
        settings = deepspeed_settings(config, self.plan, precision="fp32", on_gpu=False)
        lm = model_of(config, ZeroSharding(settings))
        if recompute:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model = SelectiveLM(lm.train(), eos_id=EOS_ID, document_isolation=True)
        self.engine = ZeroEngine(model, settings, adamw(model, settings, config.train))
        self.world = world
        self.vocab_size = lm.config.vocab_size
        self.generator = torch.Generator().manual_seed(0)
        self.steps = 0
        self.rows_read = 0

    def step(
        self,
        objective: Objective,
        reference: Callable[[Tensor], Tensor] | None = None,
        *,
        keeps_graphs: bool = True,
    ) -> None:
        """One step; with `reference`, its losses are computed first and not read."""
        self.steps += 1
        micro_batches = [self._micro_batch(reference) for _ in range(self.plan.micro_steps)]
        moment = Moment(self.steps, self.steps * self.plan.tokens_per_step)
        train_step = TrainStep(
            self.engine,
            objective,
            self.world,
            EOS_ID,
            domain_count=1,
            may_repeat_rows=False,
            keeps_graphs=keeps_graphs,
        )
        result = train_step(micro_batches, moment, learning_rate=1e-6)
        result.sums.sum().item()

    def _micro_batch(self, reference: Callable[[Tensor], Tensor] | None) -> MicroBatch:
        shape = (self.plan.micro_batch_rows, self.seq_len + 1)
        # Frequent and rare tokens, as text has them.
        tokens = (self.vocab_size * torch.rand(shape, generator=self.generator) ** 3).long()
        rows = torch.arange(shape[0]) + self.rows_read + self.world.rank * shape[0]
        self.rows_read += shape[0] * self.world.size
        ref_loss = 8.3 + 0.5 * torch.randn(shape[0], self.seq_len, generator=self.generator)
        if reference is not None:
            ref_loss = reference(tokens) + ref_loss - 8.3
        return MicroBatch(tokens, rows, torch.zeros_like(rows), ref_loss, visit=0)


def model_of(config: RunConfig, sharding: Sharding) -> CausalLM:
    architecture = config.model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=0, standard_deviation=architecture.initializer_range, sharding=sharding)
    return lm


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    world = join_world()
    rows = 8 if chosen.quick else 64
    base = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
    # Built before any engine announces itself: from then on every model is divided.
    reference = SelectiveLM(model_of(base, Whole()).eval(), eos_id=EOS_ID, document_isolation=True)
    alternatives: dict[str, Callable[[], object]] = {}
    for micro_steps in (1, 2):
        trainer = Trainer(micro_steps, world, rows)
        exact, running = SelectiveObjective(SelectionRule(K60)), SelectiveObjective(SelectionRule(K60, mode="running"))
        for _ in range(EXACT_STEPS):
            trainer.step(running)
        online = SelectiveObjective(SelectionRule(K60))
        suffix = f"{micro_steps} micro-step{'s' if micro_steps > 1 else ''}"
        for name, objective, measure in (
            ("CLM", CausalObjective(), None),
            ("SLM exact", exact, None),
            ("SLM running", running, None),
            ("SLM exact, reference online", online, reference.measure),
        ):
            alternatives[f"{name}, {suffix}"] = lambda trainer=trainer, objective=objective, measure=measure: (
                trainer.step(objective, measure)
            )
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
