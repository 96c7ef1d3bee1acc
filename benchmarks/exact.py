"""Exact selection over several micro-steps, by kept graphs and by a second forward pass, against causal LM."""

import multiprocessing
import os
import socket
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from harness.memory import bytes_beyond
from harness.report import Bar, options, report
from harness.steps import Steps, frequent_and_rare, shape_of, with_batch
from harness.timing import Times, in_turns

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import join_world, leave_world
from megaslm.slm.objective import CausalObjective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, SelectionRule

_STEPS_BEFORE = 2
"""DeepSpeed knows the order of a step's modules after three."""
ROOT = Path(__file__).parents[1]
K60 = KeepRatio(Decimal("0.6"))
WAYS = ("CLM", "SLM, kept graphs", "SLM, second pass")


@dataclass(frozen=True)
class Case:
    """A layout, and the most that SLM with kept graphs may take of CLM's processor time."""

    name: str
    micro_steps: int
    ranks: int
    recompute: bool
    limit: float


CASES = (
    Case("full recomputation, 4 micro-steps, 2 ranks", 4, 2, recompute=True, limit=1.03),
    Case("no recomputation, 2 micro-steps, 1 rank", 2, 1, recompute=False, limit=1.0),
)


class Way:
    """The steps of one way. Each way has an engine of its own: DeepSpeed learns the order of a step's modules."""

    def __init__(self, case: Case, rows: int, way: str) -> None:
        torch.set_num_threads(1)
        world = join_world()
        base = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
        recompute = {"recompute": "full" if case.recompute else "none"}
        base = base.model_copy(update={"model": base.model.model_copy(update=recompute)})
        config = with_batch(base, rows // case.micro_steps // case.ranks, case.micro_steps * case.ranks)
        self._steps = Steps(config, world, frequent_and_rare(shape_of(base).vocab_size, world.device))
        self._objective = CausalObjective() if way == "CLM" else SelectiveObjective(SelectionRule(K60))
        self._keeps_graphs = way == "SLM, kept graphs"

    def make(self) -> None:
        self._steps.step(self._objective, keeps_graphs=self._keeps_graphs)


def seconds_of_rank(seat: dict[str, str], case: Case, rows: int, repetitions: int, sender: Connection) -> None:
    os.environ.update(seat)
    steps = {way: Way(case, rows, way) for way in WAYS}
    for _ in range(_STEPS_BEFORE):
        for of_way in steps.values():
            of_way.make()
    times = in_turns({way: steps[way].make for way in WAYS}, repetitions, clock=time.process_time)
    sender.send({way: taken.seconds for way, taken in times.items()})
    leave_world()


def times_of(case: Case, rows: int, repetitions: int) -> dict[str, Times]:
    """Processor seconds of all ranks together, a step each."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(case.ranks):
        seat = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "LOCAL_WORLD_SIZE": case.ranks}
        environment = {name: str(value) for name, value in {**seat, "MASTER_PORT": port}.items()}
        receiver, sender = context.Pipe(duplex=False)
        arguments = (environment | {"MASTER_ADDR": "127.0.0.1"}, case, rows, repetitions, sender)
        process = context.Process(target=seconds_of_rank, args=arguments)
        process.start()
        sender.close()
        ranks.append((process, receiver))
    found = [receiver.recv() for _, receiver in ranks]
    for process, _ in ranks:
        process.join()
    return {way: Times(tuple(map(sum, zip(*(of_rank[way] for of_rank in found), strict=True)))) for way in WAYS}


def peak_bytes(case: Case, rows: int, way: str) -> int:
    """What two steps of as many rows as a rank has add to a process's resident memory, at most."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (replace(case, ranks=1), rows // case.ranks, way))


def _peak_bytes(case: Case, rows: int, way: str) -> int:
    steps = Way(case, rows, way)

    def two_steps() -> None:
        steps.make()
        steps.make()

    return bytes_beyond(two_steps)


def main() -> None:
    chosen = options(__doc__)
    rows, repetitions = (16, 2) if chosen.quick else (64, 11)
    table, bars = [], []
    for case in CASES:
        times = times_of(case, rows, repetitions)
        for way in WAYS:
            table.append(
                {
                    "layout": case.name,
                    "step": way,
                    "seconds": times[way].median,
                    "to CLM": times[way].over(times["CLM"]),
                    "from – to": times[way].spread(times["CLM"]),
                    "MB beside the model, of one rank": round(peak_bytes(case, rows, way) / 1e6),
                }
            )
        bars.append(Bar(f"kept graphs to CLM, {case.name}", times[WAYS[1]].over(times["CLM"]), case.limit))
    report(
        f"What does exact selection over several micro-steps cost? The demo's model (1.26M parameters), {rows} rows of "
        "128, k=0.6, ZeRO-3, one CPU thread per rank, processor time of all ranks",
        table,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
