"""The training stream: micro-batches of rows, in an order that does not depend on the number of ranks.

Loader processes end only when their rank tells them to or ends itself. They ignore the signals that launchers and
schedulers send to all processes of a job: the rank needs its loaders to answer such a signal.
"""

import multiprocessing
import os
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from time import sleep
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import FetchSection
from megaslm.dataset.index import read_index
from megaslm.dataset.packing import document_bounds
from megaslm.dataset.rows import unpack_mask
from megaslm.errors import DataError
from megaslm.stream.host_folder import HostFolder
from megaslm.stream.mixture import MixtureStream
from megaslm.stream.order import Extent, Numbers, first_place, order_of
from megaslm.stream.shard_files import files_of
from megaslm.stream.shards import ShardChecks, TrainingShards, claim_caches

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 1.0
# For a loader process that is told to end. It shares a lock with its rank, which would wait for ever for one that ends
# while it holds the lock.
_LEAVING_SECONDS = 1.0
_FETCH = FetchSection()
_DTYPES: dict[str, type[np.generic]] = {
    "selected": np.uint8,
    "target_mask": np.bool_,
    "ref_top_logprob": np.float16,
    "ref_top_id": np.int32,
}
"""Types of columns. All others are float32. A mask is unpacked after this."""
_OF_DISTILLATION = ("ref_top_logprob", "ref_top_id")
"""Columns that take more room than all others, and only distillation reads."""
WeightRange = tuple[float, float]
"""The least and the largest weight."""
# Micro-batches whose shards are requested ahead of reading.
_BATCHES_AHEAD = 8


@contextmanager
def without_signals() -> Iterator[None]:
    """Blocks SIGINT, SIGTERM and SIGUSR1 in this thread, and in the processes that it starts, within the context.

    This process loses no signal: another thread gets it, or this one at the context's end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_rank(rank_pid: int, worker: int) -> None:
    """Makes this loader process, started `without_signals`, end with its rank. `worker` is its number."""
    threading.Thread(target=_follow, args=(rank_pid,), name=f"loader-{worker}", daemon=True).start()


def _follow(rank_pid: int) -> NoReturn:
    """Ends this process with the rank's process, or soon after its SIGTERM, even if the main thread is stuck.

    A main thread that is not stuck leaves by itself meanwhile, because torch tells it to.
    """
    while os.getppid() == rank_pid:
        told = signal.sigtimedwait(_SIGNALS, _LOOK_SECONDS)
        if told is not None and told.si_signo == signal.SIGTERM and told.si_pid == rank_pid:
            sleep(_LEAVING_SECONDS)
            break
    os._exit(0)


@dataclass(frozen=True)
class MicroBatch:
    """B rows of one rank.

    `tokens`: (B, L+1) int64. `rows`: (B,) int64, row numbers over all streams of the run, one stream after the other.
    `domain`: (B,) int64, numbered as in the run. `visit`: the epoch. `columns`: what the dataset stores of the targets,
    by name. `ref_loss`, `ref_entropy` and further losses: (B, L) float32 in nats. `weight`: (B, L) float32. `selected`:
    (B, L) bool, the targets that the dataset's mask selects. `target_mask`: (B, L) bool, false at targets that the
    dataset excludes. `ref_top_logprob`: (B, L, K+1) float16 in nats, and `ref_top_id`: (B, L, K) int32, if the stream
    was asked for them. `document_bounds`: (documents + 1,) int32, the first token of each document of the (B, L)
    inputs, then B·L; None unless the stream was asked for them. They are found on the host: a GPU could tell their
    number only by making the host wait.
    """

    tokens: Tensor
    rows: Tensor
    domain: Tensor
    visit: int
    columns: dict[str, Tensor] = field(default_factory=dict)
    document_bounds: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["MicroBatch"]) -> "MicroBatch":
        """The rows of one epoch's micro-batches as one. An empty document stands between two of them."""
        first, size = parts[0], parts[0].tokens[:, 1:].numel()
        bounds = [
            part.document_bounds + number * size
            for number, part in enumerate(parts)
            if part.document_bounds is not None
        ]
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.rows for part in parts]),
            torch.cat([part.domain for part in parts]),
            first.visit,
            {name: torch.cat([part.columns[name] for part in parts]) for name in first.columns},
            torch.cat(bounds) if bounds else None,
        )

    def __reduce__(self) -> tuple[Callable[..., "MicroBatch"], tuple[object, ...]]:
        """Pickles as bytes, not as tensors: a killed process would leave tensors' files in shared memory."""
        return _of_arrays, self._each(Tensor.numpy)

    def pin_memory(self) -> "MicroBatch":
        """The same micro-batch in page-locked memory, for asynchronous copies."""
        return MicroBatch(*self._each(Tensor.pin_memory))

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on another device, copied asynchronously."""
        return MicroBatch(*self._each(methodcaller("to", device, non_blocking=True)))

    def _each(self, change: Callable[[Tensor], Any]) -> tuple[Any, ...]:
        """The fields, each tensor changed."""
        columns = {name: change(column) for name, column in self.columns.items()}
        bounds = None if self.document_bounds is None else change(self.document_bounds)
        return change(self.tokens), change(self.rows), change(self.domain), self.visit, columns, bounds


def _of_arrays(
    tokens: NDArray[np.int64],
    rows: NDArray[np.int64],
    domain: NDArray[np.int64],
    visit: int,
    columns: dict[str, NDArray[np.generic]],
    document_bounds: NDArray[np.int32] | None,
) -> MicroBatch:
    return MicroBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(rows),
        torch.from_numpy(domain),
        visit,
        {name: torch.from_numpy(column) for name, column in columns.items()},
        None if document_bounds is None else torch.from_numpy(document_bounds),
    )


class TrainingStream:
    """The streams of a run, epoch after epoch, cut into this rank's micro-batches."""

    def __init__(
        self,
        streams: Sequence[MixtureStream],
        plan: BatchPlan,
        *,
        shuffle_seed: int,
        workers: int,
        fetch: FetchSection = _FETCH,
        eos_id: int | None = None,
        weight_range: WeightRange | None = None,
        distills: bool = False,
    ) -> None:
        """Opens the streams; called on all ranks.

        An epoch holds whole global batches only: the remaining rows, fewer than one batch, wait for the next shuffle.
        `workers`: processes per rank that read ahead; 0: the rank itself reads. `eos_id`: of the tokenizer, for
        micro-batches with the bounds of their documents. `weight_range`: what stored weights may be; None where the run
        does not use them. `distills`: whether micro-batches have the reference's most likely tokens.

        Raises DataError where the streams have fewer rows than one global batch, an index is corrupt, the cache is too
        small or in use, or there is no room for the orders of its epochs.
        """
        indices = [read_index(stream.local) for stream in streams]
        self.order = partial(order_of, streams, indices, plan, shuffle_seed)
        self._workers = workers
        self._plan = plan
        self._eos_id = eos_id
        self._weight_range = weight_range
        self._left_out = () if distills else _OF_DISTILLATION
        # The first rank's values count: all ranks must agree on one order.
        agreed = [uuid.uuid4().hex[:12], os.environ.get("LOCAL_WORLD_SIZE", str(plan.world_size))]
        rank, local_rank = 0, int(os.environ.get("LOCAL_RANK", "0"))
        if dist.is_initialized():
            dist.broadcast_object_list(agreed)
            rank = dist.get_rank()
        name, host_ranks = agreed
        # Several hosts simulated on one machine may share TMPDIR, so each has a folder of its own.
        self._host = HostFolder(f"{name}-{rank - local_rank}")
        self._host.require_room(self.order(), plan.total_steps * plan.global_batch_rows)
        shards = [files for pair in zip(streams, indices, strict=True) for files in files_of(*pair)]
        claim_caches(shards, self._host, fetch)
        self._open_shards = partial(TrainingShards, shards, self._host, fetch)
        self._first_place = first_place(rank, plan.world_size, int(host_ranks))

    def micro_batches(self, rows_seen: int, extents: tuple[Extent, ...] = ()) -> Generator[MicroBatch]:
        """This rank's endless micro-batches, after the `rows_seen` rows that all ranks have read so far.

        `extents`: the lengths of the streams, from which epoch on; empty if they have never changed.

        Raises DataError where a shard is corrupt, cannot be fetched, or did not come in time, or holds a weight out of
        range.
        """
        order = self.order(extents)
        epoch, rows_into_epoch = order.place_of(rows_seen)
        while True:
            numbers = self._host.order_of(order, epoch)
            mine = numbers[rows_into_epoch + self._first_place :: self._plan.world_size]
            items, workers = self._start_reading(mine, epoch)
            try:
                for item in items:
                    if isinstance(item, DataError):
                        raise item
                    yield item
            finally:
                # torch alone would wait 5 s for each that waits for a shard.
                for worker in workers:
                    worker.terminate()
                del items
            epoch, rows_into_epoch = epoch + 1, 0

    def _start_reading(
        self, numbers: Numbers, epoch: int
    ) -> tuple[Iterator[MicroBatch | DataError], set[multiprocessing.process.BaseProcess]]:
        """The micro-batches of these rows, and the loader processes that were started for them."""
        loader: DataLoader[MicroBatch | DataError] = DataLoader(
            _MicroBatches(
                self._open_shards,
                numbers,
                self._plan.micro_batch_rows,
                epoch,
                self._eos_id,
                self._weight_range,
                self._left_out,
            ),
            batch_size=None,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(follow_rank, os.getpid()),
        )
        others = set(multiprocessing.active_children())
        with without_signals():
            items = iter(loader)
        return items, set(multiprocessing.active_children()) - others

    def checked(self) -> ShardChecks:
        """The cost of checking shards on first use, over all processes of this host, so far."""
        return ShardChecks.on(self._host)


@dataclass(frozen=True, eq=False)
class _MicroBatches(IterableDataset[MicroBatch | DataError]):
    """A process's micro-batches of one epoch, followed by the error that ended it, if any.

    An error is passed as a value, because an exception of a loader process arrives as the text of a traceback.
    """

    open_shards: Callable[[], TrainingShards]
    numbers: Numbers
    batch_rows: int
    epoch: int
    eos_id: int | None
    weight_range: WeightRange | None
    left_out: Sequence[str]

    def __iter__(self) -> Iterator[MicroBatch | DataError]:
        try:
            with self.open_shards() as shards:
                yield from self._read(shards)
        except DataError as error:
            # Subclasses of DataError take more arguments than a message, so they cannot be pickled.
            yield DataError(str(error))

    def _read(self, shards: TrainingShards) -> Iterator[MicroBatch]:
        coming: deque[tuple[list[int], list[int]]] = deque()
        for numbers in self._batches():
            coming.append((numbers, [shards.shard_of(number) for number in numbers]))
            for shard in dict.fromkeys(coming[-1][1]):
                shards.request(shard)
            if len(coming) > _BATCHES_AHEAD:
                yield self._batch(coming, shards)
        while coming:
            yield self._batch(coming, shards)

    def _batches(self) -> Iterator[list[int]]:
        """The rows of this process's micro-batches. Loader processes take turns."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for start in range(first * self.batch_rows, len(self.numbers), step * self.batch_rows):
            yield self.numbers[start : start + self.batch_rows].tolist()

    def _batch(self, coming: deque[tuple[list[int], list[int]]], shards: TrainingShards) -> MicroBatch:
        if shards.are_evicted:
            shards.keep_mapped({shard for _, of_rows in coming for shard in of_rows})
        numbers, of_rows = coming.popleft()
        rows = [shards.row(number, shard) for number, shard in zip(numbers, of_rows, strict=True)]
        tokens = _values(rows, "tokens", np.int64)
        columns = {
            name: _values(rows, name, _DTYPES.get(name, np.float32))
            for name in rows[0].dtype.names or ()
            if name not in ("tokens", "domain", *self.left_out)
        }
        if "selected" in columns:
            columns["selected"] = unpack_mask(columns["selected"], tokens.shape[1] - 1)
        if self.weight_range is not None:
            _check_weights(columns["weight"], numbers, self.weight_range)
        bounds = None if self.eos_id is None else document_bounds(tokens[:, :-1], self.eos_id)
        return _of_arrays(tokens, np.array(numbers), shards.domains[of_rows], self.epoch, columns, bounds)


def _values(rows: list[np.void], name: str, dtype: type[np.generic]) -> NDArray[Any]:
    """A column as (B, width), converted to `dtype` without a copy in between."""
    stacked = np.empty((len(rows), *rows[0].dtype[name].shape), dtype=dtype)
    for place, row in enumerate(rows):
        stacked[place] = row[name]
    return stacked


def _check_weights(weight: NDArray[np.float32], numbers: Sequence[int], weight_range: WeightRange) -> None:
    """Raises DataError where one of the (B, L) weights of these rows is NaN or out of range."""
    least, largest = weight_range
    wrong = np.argwhere(~((weight >= least) & (weight <= largest)))
    if len(wrong):
        row, target = wrong[0]
        remedy = "set slm.weight.bound_nats for negative weights, or attach" if least == 0 else "attach"
        raise DataError(
            f"weight of target {target} in row {numbers[row]:,} of the training data is {weight[row, target]:g}: must "
            f"be in [{least:g}, {largest:g}]; {remedy} another column"
        )
