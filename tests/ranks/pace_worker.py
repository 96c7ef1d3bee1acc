"""One rank of test_pace: trains a small model under ZeRO-3 with its pace taken, and writes what every report found."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path

import torch

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.engine.distributed import World, join_world, leave_world
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.health.pace import PaceMeter
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.stream.loader import MicroBatch
from megaslm.training.pace import PaceWatch
from megaslm.training.step import TrainStep
from tests.injection.faults import arm, inject
from tests.toy import EOS_ID, SEQ_LEN, VOCAB_SIZE, run_config

GLOBAL_ROWS = 8
BY_EXCESS = SelectionRule(KeepRatio(Decimal("0.6")))


@dataclass(frozen=True)
class Training:
    """What to train, and what goes wrong in it."""

    steps: int
    steps_per_report: int
    rule: SelectionRule = BY_EXCESS
    micro_steps: int = 1
    faults: str = ""
    loading_seconds: float = 0.0
    """What the last rank waits for each micro-batch."""
    slow_product: int | None = None
    """How large its matrices are at a report, in place of the others' 256."""


@dataclass(frozen=True)
class Report:
    """What a report said."""

    step: int
    slowest_rank: int
    slowest_ratio: float
    news: list[str]


def train_each(trainings: Sequence[Training], note: Path) -> None:
    """Writes the reports of each training into `note`, from the first rank."""
    torch.set_num_threads(1)
    world = join_world()
    reports = [train(training, world) for training in trainings]
    if world.is_first:
        note.write_text(json.dumps([list(map(asdict, each)) for each in reports]))
    leave_world()


def read_reports(note: Path) -> list[list[Report]]:
    """What `train_each` wrote."""
    return [[Report(**report) for report in each] for each in json.loads(note.read_text())]


def train(training: Training, world: World) -> list[Report]:
    """Trains, and gives what every report found."""
    engine, meter = _engine_and_meter(training, world)
    watch = PaceWatch(meter, world, slow_ratio=1.5, last_step=0)
    objective = SelectiveObjective(training.rule)
    train_step = TrainStep(engine, objective, world, EOS_ID, domain_count=1, may_repeat_rows=False)
    arm(training.faults)
    batches = _micro_batches(training, world)
    reports = []
    for step in range(1, training.steps + 1):
        inject("step", step)
        begun_at = time.perf_counter()
        rows = list(islice(batches, training.micro_steps))
        loading_seconds = time.perf_counter() - begun_at
        train_step(rows, Moment(step, 0), learning_rate=1e-3)
        meter.add_step(loading_seconds=loading_seconds, step_seconds=time.perf_counter() - begun_at)
        if step % training.steps_per_report == 0:
            found = watch.report(step)
            reports.append(Report(step, found.slowest_rank, found.slowest_ratio, list(found.news)))
    meter.close()
    return reports


def _engine_and_meter(training: Training, world: World) -> tuple[ZeroEngine, PaceMeter]:
    rows_at_once = GLOBAL_ROWS // world.size // training.micro_steps
    config = run_config(Path("unused"), Path("unused"), train={"micro_batch_rows": rows_at_once})
    settings = deepspeed_settings(config, plan_batches(config, world.size), precision="fp32", on_gpu=False)
    sharding = ZeroSharding(settings)
    assert config.model.from_scratch is not None
    lm = build_from_shape(config.model.from_scratch, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.02, sharding=sharding)
    lm.train()
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
    engine = ZeroEngine(model, settings, adamw(model, settings, config.train))
    return engine, PaceMeter(world, product_size=training.slow_product if world.rank == world.size - 1 else None)


def _micro_batches(training: Training, world: World) -> Iterator[MicroBatch]:
    for step in range(training.steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(3, VOCAB_SIZE, (GLOBAL_ROWS, SEQ_LEN + 1), generator=generator)
        ref_loss = 4.2 + 2.0 * torch.randn(GLOBAL_ROWS, SEQ_LEN, generator=generator)
        mine = torch.arange(GLOBAL_ROWS).chunk(world.size)[world.rank]
        for rows in mine.chunk(training.micro_steps):
            if world.rank == world.size - 1:
                time.sleep(training.loading_seconds)
            yield MicroBatch(
                tokens[rows], step * GLOBAL_ROWS + rows, torch.zeros_like(rows), 0, {"ref_loss": ref_loss[rows]}
            )
