"""One rank of test_gradients: gradients of a ZeRO-3 step against plain PyTorch in float64 over the whole batch."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.data.loader import MicroBatch
from megaslm.engine.distributed import World, join_world, leave_world
from megaslm.engine.zero import ZeroEngine, ZeroSharding
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.objective import Scope, SelectiveObjective
from megaslm.training.step import train_step
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, Unsharded, run_config

GLOBAL_ROWS = 8


@dataclass(frozen=True)
class Case:
    scope: Scope
    micro_steps: int
    tied: bool
    starved_rank: bool = False
    checkpointing: bool = False

    @property
    def keep_ratio(self) -> Decimal:
        """Less than half where one of two ranks is to come away empty."""
        return Decimal("0.4" if self.starved_rank else "0.6")


CASES = [
    *(Case(scope, steps, tied) for tied in (False, True) for scope, steps in
      (("sequence", 1), ("sequence", 2), ("batch", 1), ("batch", 2), ("microbatch", 2))),
    Case("batch", 1, tied=True, starved_rank=True),
    Case("sequence", 2, tied=False, starved_rank=True),
    Case("batch", 1, tied=True, checkpointing=True),
]  # fmt: skip


class RecordingEngine(ZeroEngine):
    """Keeps the whole gradients of the step's end, before they are used up."""

    def __init__(self, model: SelectiveLM, settings: dict[str, object], config: RunConfig) -> None:
        super().__init__(model, settings, config.train)
        self._model = model
        self.gradients: dict[str, Tensor] = {}

    def step(self, lr: float) -> None:
        if self._engine.is_gradient_accumulation_boundary():
            self.gradients = {
                name: safe_get_full_grad(parameter).double() for name, parameter in self._model.named_parameters()
            }
        super().step(lr)


def rows_of_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Tokens (8, L+1) and reference losses (8, L); the second half goes to the second of two ranks."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCAB_SIZE, (GLOBAL_ROWS, SEQ_LEN + 1), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = EOS_ID
    ref_loss = 4.2 + 2.0 * torch.randn(GLOBAL_ROWS, SEQ_LEN, generator=generator)
    if case.starved_rank and case.scope == "batch":
        ref_loss[GLOBAL_ROWS // 2 :] = 1000.0
    elif case.starved_rank:
        tokens[GLOBAL_ROWS // 2 :] = EOS_ID
    return tokens, ref_loss


def groups(case: Case, world: World) -> list[list[int]]:
    """The rows among which a target must rank, as the definition of the scope has them."""
    rows = list(range(GLOBAL_ROWS))
    if case.scope == "batch":
        return [rows]
    size = 1 if case.scope == "sequence" else GLOBAL_ROWS // world.size // case.micro_steps
    return [rows[start : start + size] for start in range(0, GLOBAL_ROWS, size)]


def exact_gradients(case: Case, config: RunConfig, world: World) -> dict[str, Tensor]:
    """The definition, in float64: rank by sorting, sum, divide once by the global count."""
    architecture = config.model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=Unsharded())
    lm = lm.double()
    tokens, ref_loss = rows_of_batch(case)
    losses = torch.stack([documents_apart(lm, row) for row in tokens])
    valid = tokens[:, :-1] != EOS_ID
    selected = torch.zeros_like(valid)
    for group in groups(case, world):
        candidates = [
            (-float(losses.detach()[row, place] - ref_loss[row, place]), row, place)
            for row in group
            for place in range(SEQ_LEN)
            if valid[row, place]
        ]
        keep = int(case.keep_ratio * len(candidates) + Decimal("0.5"))
        for _, row, place in sorted(candidates)[:keep]:
            selected[row, place] = True
    (losses[selected].sum() / max(1, int(selected.sum()))).backward()
    if case.starved_rank:
        assert not selected[GLOBAL_ROWS // 2 :].any()
    return {f"lm.{name}": parameter.grad for name, parameter in lm.named_parameters()}


def documents_apart(lm: torch.nn.Module, row: Tensor) -> Tensor:
    """A row's losses, each document run through the model by itself."""
    starts = [0, *(place + 1 for place in range(SEQ_LEN) if row[place] == EOS_ID)]
    ends = [*starts[1:], SEQ_LEN]
    losses = []
    for start, end in zip(starts, ends, strict=True):
        if start < end:
            logits = lm(row[None, start:end]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, row[start + 1 : end + 1], reduction="none"))
    return torch.cat(losses)


def zero_gradients(case: Case, config: RunConfig, world: World) -> dict[str, Tensor]:
    plan = plan_batches(config, world.size)
    assert plan.micro_steps == case.micro_steps
    settings = deepspeed_settings(config, plan, precision="fp32", on_gpu=False)
    sharding = ZeroSharding(settings)
    architecture = config.model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=sharding)
    if case.checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.train()
    engine = RecordingEngine(SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True), settings, config)
    micro_batches = list(shares(case, world, plan.micro_batch_rows))
    objective = SelectiveObjective(case.keep_ratio, case.scope)
    train_step(engine, objective, micro_batches, world, eos_id=EOS_ID, step=1, learning_rate=1e-3)
    return engine.gradients


def shares(case: Case, world: World, micro_batch_rows: int) -> Iterator[MicroBatch]:
    tokens, ref_loss = rows_of_batch(case)
    mine = torch.arange(GLOBAL_ROWS).chunk(world.size)[world.rank]
    for rows in mine.split(micro_batch_rows):
        yield MicroBatch(tokens[rows], rows, torch.zeros_like(rows), ref_loss[rows], visit=0)


def main(output: Path) -> None:
    torch.set_num_threads(1)
    world = join_world()
    errors: dict[str, dict[str, float]] = {}
    for case in CASES:
        config = run_config(
            Path("unused"),
            Path("unused"),
            model={"from_scratch": {**SHAPE, "tie_embeddings": case.tied}},
            train={"micro_batch_rows": GLOBAL_ROWS // world.size // case.micro_steps},
        )
        # Before the engine announces itself: from then on transformers divides every model it builds.
        expected = exact_gradients(case, config, world)
        found = zero_gradients(case, config, world)
        assert set(found) == set(expected)
        errors[str(case)] = {
            name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected
        }
    if world.is_first:
        output.write_text(json.dumps(errors))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
