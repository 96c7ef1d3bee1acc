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
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import read_index
from megaslm.dataset.packing import document_bounds
from megaslm.dataset.rows import unpack_mask
from megaslm.errors import DataError
from megaslm.stream.host_folder import HostFolder
from megaslm.stream.mixture import MixtureStream, order_of
from megaslm.stream.order import Extent, Numbers, RowOrder, first_place
from megaslm.stream.shards import FetchSettings, Row, ShardChecks, Supply, TrainingShards

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 1.0
Number = TypeVar("Number", bound=np.generic)

# Micro-batches whose shards are requested ahead of reading.
_BATCHES_AHEAD = 8


@contextmanager
def without_signals() -> Iterator[None]:
    """Blocks SIGTERM and SIGUSR1 in this thread, and in the processes that it starts, within the context.

    This process loses no signal: another thread gets it, or this one at the context's end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def begun_processes() -> Iterator[list[BaseProcess]]:
    """After the context, the list holds the processes that were started within it."""
    before = set(multiprocessing.active_children())
    begun: list[BaseProcess] = []
    yield begun
    begun += set(multiprocessing.active_children()) - before


def follow_rank(rank_pid: int, worker: int) -> None:
    """Makes this loader process, started `without_signals`, end with its rank. `worker` is its number."""
    threading.Thread(target=_follow, args=(rank_pid,), name=f"loader-{worker}", daemon=True).start()


def _follow(rank_pid: int) -> NoReturn:
    """Ends this process with the rank's process or on its SIGTERM, even if the main thread is stuck."""
    while os.getppid() == rank_pid:
        told = signal.sigtimedwait(_SIGNALS, _LOOK_SECONDS)
        if told is not None and told.si_signo == signal.SIGTERM and told.si_pid == rank_pid:
            break
    os._exit(0)


@dataclass(frozen=True)
class MicroBatch:
    """B rows of one rank.

    `tokens`: (B, L+1) int64. `rows`: (B,) int64, row numbers over all streams of the run, one stream after the other.
    `domain`: (B,) int64, numbered as in the run. `ref_loss`: (B, L) float32 in nats; None if the dataset is not scored.
    `visit`: the epoch. `ref_entropy`: (B, L) float32 in nats; None if the dataset has none. `selected`: (B, L) bool,
    the targets that the dataset's mask selects; None if it has no mask. `target_mask`: (B, L) bool, false at targets
    that the dataset excludes; None if it excludes none. `document_bounds`: (documents + 1,) int32, the
    first token of each document of the (B, L) inputs, then B·L; None unless the stream was asked for them. They are
    found on the host: a GPU could tell their number only by making the host wait.
    """

    tokens: Tensor
    rows: Tensor
    domain: Tensor
    ref_loss: Tensor | None
    visit: int
    ref_entropy: Tensor | None = None
    selected: Tensor | None = None
    target_mask: Tensor | None = None
    document_bounds: Tensor | None = None

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], "MicroBatch"], tuple[dict[str, Any]]]:
        """Pickles as bytes, not as tensors: a killed process would leave tensors' files in shared memory."""
        return _of_arrays, (self._with(Tensor.numpy),)

    def pin_memory(self) -> "MicroBatch":
        """The same micro-batch in page-locked memory, for asynchronous copies."""
        return MicroBatch(**self._with(Tensor.pin_memory))

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on another device, copied asynchronously."""
        return MicroBatch(**self._with(lambda tensor: tensor.to(device, non_blocking=True)))

    def _with(self, change: Callable[[Tensor], object]) -> dict[str, Any]:
        return {name: change(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()}


def _of_arrays(fields: dict[str, Any]) -> MicroBatch:
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            fields[name] = torch.from_numpy(value)
    return MicroBatch(**fields)


class TrainingStream:
    """The streams of a run, epoch after epoch, cut into this rank's micro-batches."""

    def __init__(
        self,
        streams: Sequence[MixtureStream],
        plan: BatchPlan,
        *,
        shuffle_seed: int,
        workers: int,
        fetch: FetchSettings | None,
        eos_id: int | None = None,
    ) -> None:
        """Opens the streams; called on all ranks.

        An epoch holds whole global batches only: the remaining rows, fewer than one batch, wait for the next shuffle.

        Args:
            streams: the streams to read.
            plan: how rows are cut into batches.
            shuffle_seed: seed of the order of rows.
            workers: processes per rank that read ahead; 0: the rank itself reads.
            fetch: how shards are fetched; needed if a stream is remote.
            eos_id: of the tokenizer, for micro-batches with the bounds of their documents.

        Raises:
            DataError: the streams have fewer rows than one global batch, an index is corrupt, the cache is too small
                or in use, or there is no room for an epoch's order.
        """
        indices = [read_index(stream.local) for stream in streams]
        self._order_of = partial(order_of, streams, indices, plan, seed=shuffle_seed)
        order = self._order_of()
        self._workers = workers
        self._plan = plan
        self._eos_id = eos_id
        # The first rank's values count: all ranks must agree on one order.
        agreed = [uuid.uuid4().hex[:12], os.environ.get("LOCAL_WORLD_SIZE", str(plan.world_size))]
        rank, local_rank = 0, int(os.environ.get("LOCAL_RANK", "0"))
        if dist.is_initialized():
            dist.broadcast_object_list(agreed)
            rank = dist.get_rank()
        name, host_ranks = agreed
        # Several hosts simulated on one machine may share TMPDIR, so each has a folder of its own.
        self._host = HostFolder(f"{name}-{rank - local_rank}")
        self._host.require_room(order)
        self._shards = TrainingShards(streams, indices, self._host, fetch)
        self._first_place = first_place(rank, plan.world_size, int(host_ranks))

    def order(self, extents: tuple[Extent, ...]) -> RowOrder:
        """The order of rows for streams with these extents."""
        return self._order_of(extents=extents)

    def micro_batches(self, rows_seen: int, extents: tuple[Extent, ...] = ()) -> Generator[MicroBatch]:
        """This rank's endless micro-batches, after the `rows_seen` rows that all ranks have read so far.

        `extents`: the lengths of the streams, from which epoch on; empty if they have never changed.

        Raises DataError where a shard is corrupt, cannot be fetched, or did not come in time.
        """
        order = self.order(extents)
        epoch, rows_into_epoch = order.place_of(rows_seen)
        while True:
            numbers = self._host.order_of(order, epoch)
            mine = numbers[rows_into_epoch + self._first_place :: self._plan.world_size]
            loader: DataLoader[MicroBatch | DataError] = DataLoader(
                _MicroBatches(self._shards, mine, self._plan.micro_batch_rows, visit=epoch, eos_id=self._eos_id),
                batch_size=None,
                num_workers=self._workers,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=partial(follow_rank, os.getpid()),
            )
            with without_signals(), begun_processes() as workers:
                items = iter(loader)
            try:
                for item in items:
                    if isinstance(item, DataError):
                        raise item
                    yield item
            finally:
                # End the workers directly: torch would wait 5 s for each that waits for a shard.
                for worker in workers:
                    worker.terminate()
            epoch, rows_into_epoch = epoch + 1, 0

    def checked(self) -> ShardChecks:
        """The cost of checking shards on first use, over all processes of this host, so far."""
        return self._shards.checks()


class _MicroBatches(IterableDataset[MicroBatch | DataError]):
    """A process's micro-batches of one epoch, followed by the error that ended it, if any.

    An error is passed as a value, because an exception of a loader process arrives as the text of a traceback.
    """

    def __init__(
        self, shards: TrainingShards, numbers: Numbers, batch_rows: int, visit: int, eos_id: int | None
    ) -> None:
        self._shards = shards
        self._numbers = numbers
        self._batch_rows = batch_rows
        self._visit = visit
        self._eos_id = eos_id

    def __iter__(self) -> Iterator[MicroBatch | DataError]:
        try:
            with Supply(self._shards.make_ready) as supply:
                yield from self._read(supply)
        except DataError as error:
            # Subclasses of DataError take more arguments than a message, so they cannot be pickled.
            yield DataError(str(error))

    def _read(self, supply: Supply) -> Iterator[MicroBatch]:
        coming: deque[tuple[list[int], list[int]]] = deque()
        for rows in self._batches():
            shards = self._shards.shards_of(rows)
            for shard in dict.fromkeys(shards):
                if not self._shards.is_ready(shard):
                    supply.ask(shard)
            coming.append((rows.tolist(), shards))
            if len(coming) > _BATCHES_AHEAD:
                yield self._batch(coming, supply)
        while coming:
            yield self._batch(coming, supply)

    def _batches(self) -> Iterator[Numbers]:
        """The rows of this process's micro-batches. Loader processes take turns."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for start in range(first * self._batch_rows, len(self._numbers), step * self._batch_rows):
            yield self._numbers[start : start + self._batch_rows]

    def _batch(self, coming: deque[tuple[list[int], list[int]]], supply: Supply) -> MicroBatch:
        self._shards.keep_mapped({shard for _, shards in coming for shard in shards})
        rows = [self._shards.row(number, shard, supply) for number, shard in zip(*coming.popleft(), strict=True)]
        return _stacked(rows, self._visit, self._eos_id)


def _stacked(rows: list[Row], visit: int, eos_id: int | None) -> MicroBatch:
    stored = rows[0].columns.dtype.names or ()
    bits = _values(rows, "selected", np.uint8) if "selected" in stored else None
    tokens = _values(rows, "tokens", np.int64)
    bounds = None if eos_id is None else document_bounds(tokens[:, :-1], eos_id)
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        rows=torch.tensor([row.number for row in rows]),
        domain=torch.tensor([row.domain for row in rows]),
        ref_loss=torch.from_numpy(_values(rows, "ref_loss", np.float32)) if "ref_loss" in stored else None,
        ref_entropy=torch.from_numpy(_values(rows, "ref_entropy", np.float32)) if "ref_entropy" in stored else None,
        selected=None if bits is None else torch.from_numpy(unpack_mask(bits, tokens.shape[1] - 1)),
        target_mask=torch.from_numpy(_values(rows, "target_mask", np.bool_)) if "target_mask" in stored else None,
        document_bounds=None if bounds is None else torch.from_numpy(bounds),
        visit=visit,
    )


def _values(rows: list[Row], name: str, dtype: type[Number]) -> NDArray[Number]:
    """A column as (B, width), converted to `dtype` without a copy in between."""
    stacked = np.empty((len(rows), *rows[0].columns.dtype[name].shape), dtype=dtype)
    for place, row in enumerate(rows):
        stacked[place] = row.columns[name]
    return stacked
