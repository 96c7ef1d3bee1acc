"""Exact selection over two ranks: histogram refinement against gathering all values and sorting them."""

import os
import socket
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness.report import Bar, options, report
from harness.timing import Times, in_turns
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from megaslm.engine.distributed import join_world
from megaslm.slm.keys import target_keys
from megaslm.slm.topk import select_top

RANKS = 2
ROW_LENGTH = 1000
KEEP_RATIO = 0.6
FULL, QUICK = 1_000_000, 100_000


class Ranked:
    """One rank's rows: every second one of a shuffled order, as a training stream hands them out."""

    def __init__(self, scores_in_all: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(scores_in_all // ROW_LENGTH, generator=generator)
        values = torch.randn(len(rows), ROW_LENGTH, generator=generator)
        self.rows = rows.chunk(RANKS)[rank]
        # 17% of real excess losses lie within 0.01 nat of the cut: values that tie are part of the task.
        self.values = (values.chunk(RANKS)[rank] * 500).round() / 500
        self.keys = target_keys(self.rows, 0, ROW_LENGTH)
        self.eligible = torch.ones_like(self.values, dtype=torch.bool)
        self.count = torch.tensor([round(KEEP_RATIO * scores_in_all)])
        self.bytes_sent = 0

    def refine(self) -> Tensor:
        def all_reduce_sum(tensor: Tensor) -> Tensor:
            self.bytes_sent += tensor.nbytes
            dist.all_reduce(tensor)
            return tensor

        top = select_top(
            self.values.view(1, -1), self.keys.view(1, -1), self.eligible.view(1, -1), self.count, all_reduce_sum
        )
        return top.mask.view_as(self.values)

    def gather_and_sort(self) -> Tensor:
        """Sends 4 bytes a score and one number a row: keys follow from that."""
        values = self._gathered(self.values)
        rows = self._gathered(self.rows)
        by_key = rows.argsort()
        order = values[by_key].flatten().sort(descending=True, stable=True).indices[: int(self.count)]
        selected = torch.zeros(values.numel(), dtype=torch.bool)
        selected[order] = True
        mask = torch.empty_like(values, dtype=torch.bool)
        mask[by_key] = selected.view_as(values)
        return mask.chunk(RANKS)[dist.get_rank()]

    def _gathered(self, tensor: Tensor) -> Tensor:
        self.bytes_sent += tensor.nbytes
        parts = [torch.empty_like(tensor) for _ in range(RANKS)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    def bytes_of(self, run: Callable[[], Tensor]) -> int:
        self.bytes_sent = 0
        run()
        return self.bytes_sent


Measured = tuple[dict[str, Times], dict[str, int], bool]


def rank(number: int, port: int, quick: bool, results: "mp.SimpleQueue[Measured]") -> None:
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    join_world()
    ranked = Ranked(QUICK if quick else FULL, number)
    alternatives = {"histogram refinement": ranked.refine, "gather and sort": ranked.gather_and_sort}
    equal = torch.equal(ranked.refine(), ranked.gather_and_sort())
    sent = {name: ranked.bytes_of(run) for name, run in alternatives.items()}
    times = in_turns(alternatives, repetitions=3 if quick else 15, clock=time.process_time)
    if number == 0:
        results.put((times, sent, equal))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    chosen = options(__doc__)
    results: mp.SimpleQueue[Measured] = mp.get_context("spawn").SimpleQueue()
    spawn(rank, args=(_free_port(), chosen.quick, results), nprocs=RANKS)
    times, sent, equal = results.get()
    if not equal:
        raise SystemExit("the two selections differ: nothing was measured")
    ours, theirs = times["histogram refinement"], times["gather and sort"]
    rows = [
        {
            "selection": name,
            "ms per rank": 1000 * taken.median,
            "to gathering": taken.over(theirs),
            "from – to": taken.spread(theirs),
            "bytes sent a rank": sent[name],
        }
        for name, taken in times.items()
    ]
    bars = [
        Bar("time, to gather and sort", ours.over(theirs), 0.5),
        Bar("bytes moved, to gather and sort", sent["histogram refinement"] / sent["gather and sort"], 0.01),
    ]
    report(
        f"What does an exact selection over {RANKS} ranks cost? {QUICK if chosen.quick else FULL} values, "
        f"k={KEEP_RATIO}, equal sets checked, processor time of a rank",
        rows,
        bars,
        chosen,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
