"""The training stream: micro-batches of rows, in an order that does not depend on the number of ranks."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import Split
from megaslm.data.manifest import Manifest
from megaslm.data.stream import Stream, StreamingDataset
from megaslm.errors import DataError

_SPLIT: Split = "train"
_HOST_LOCK = Path(tempfile.gettempdir()) / f"megaslm-stream-{os.getuid()}.lock"


@dataclass(frozen=True)
class MicroBatch:
    """B rows of one rank.

    `tokens`: (B, L+1) int64. `rows`: (B,) int64, row numbers in the dataset. `domain`: (B,) int64.
    `ref_loss`: (B, L) float32 in nats, or None where the dataset is not scored. `visit`: how often the dataset was read
    before. `ref_entropy`: (B, L) float32 in nats, or None where the dataset holds none.
    """

    tokens: Tensor
    rows: Tensor
    domain: Tensor
    ref_loss: Tensor | None
    visit: int
    ref_entropy: Tensor | None = None

    def pin_memory(self) -> "MicroBatch":
        """The same micro-batch in page-locked memory, from which copies need not be waited for."""
        return self._moved(Tensor.pin_memory)

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on another device, copied without waiting for it."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "MicroBatch":
        return MicroBatch(
            tokens=move(self.tokens),
            rows=move(self.rows),
            domain=move(self.domain),
            ref_loss=None if self.ref_loss is None else move(self.ref_loss),
            ref_entropy=None if self.ref_entropy is None else move(self.ref_entropy),
            visit=self.visit,
        )


class _NumberedRows(StreamingDataset):
    """Rows that know their number: selection breaks ties by it."""

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, np.ndarray | int]:
        return {**super().get_item(sample_id, retry), "row": sample_id}


class TrainingStream:
    """The `train` split of a dataset, epoch after epoch, cut into this rank's micro-batches."""

    def __init__(
        self,
        dataset: Path,
        manifest: Manifest,
        plan: BatchPlan,
        *,
        domains: tuple[str, ...],
        shuffle_seed: int,
        workers: int,
    ) -> None:
        """Opens the stream; called on all ranks, contains barriers.

        An epoch holds whole global batches only: at its end fewer rows than one batch wait for the next shuffle.

        Raises:
            DataError: the split has fewer rows than one global batch.
        """
        rows = sum(manifest.splits[_SPLIT][domain].rows for domain in domains)
        self._rows_per_epoch = rows // plan.global_batch_rows * plan.global_batch_rows
        if self._rows_per_epoch == 0:
            raise DataError(
                f"{dataset}: {rows} training rows in {', '.join(domains)}, fewer than the "
                f"{plan.global_batch_rows} of one "
                f"global batch; lower train.global_batch_tokens or prepare more text"
            )
        self._identity = {"num_canonical_nodes": plan.canonical_nodes, "shuffle_seed": shuffle_seed}
        self._workers = workers
        self._micro_batch_rows = plan.micro_batch_rows
        with _alone_on_this_host():
            self._dataset = _NumberedRows(
                streams=[Stream(local=str(dataset / _SPLIT / domain)) for domain in domains],
                epoch_size=self._rows_per_epoch,
                batch_size=plan.micro_batch_rows,
                shuffle=True,
                **self._identity,
            )

    def micro_batches(self, rows_seen: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches without end, after the `rows_seen` rows that all ranks have read so far."""
        epoch, rows_into_epoch = divmod(rows_seen, self._rows_per_epoch)
        while True:
            self._dataset.load_state_dict(
                {
                    "epoch": epoch,
                    "sample_in_epoch": rows_into_epoch,
                    "initial_physical_nodes": None,
                    **self._identity,
                }
            )
            loader: DataLoader[MicroBatch] = DataLoader(
                self._dataset,
                batch_size=self._micro_batch_rows,
                num_workers=self._workers,
                collate_fn=_Collate(visit=epoch),
                drop_last=True,
                pin_memory=torch.cuda.is_available(),
            )
            yield from loader
            epoch, rows_into_epoch = epoch + 1, 0


@contextmanager
def _alone_on_this_host() -> Iterator[None]:
    """Lets one job at a time open its stream on a host.

    Streaming numbers a job's shared memory by what is free when each of its ranks looks: of two jobs that start in the
    same moment, one would find the other's.
    """
    together = dist.is_initialized()
    lock = _HOST_LOCK.open("w") if int(os.environ.get("LOCAL_RANK", "0")) == 0 else None
    if lock is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    if together:
        dist.barrier()
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


@dataclass(frozen=True)
class _Collate:
    """Stacks rows; a class, so that loader processes can be handed one."""

    visit: int

    def __call__(self, rows: list[Mapping[str, np.ndarray | int]]) -> MicroBatch:
        return MicroBatch(
            tokens=torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64)),
            rows=torch.tensor([int(row["row"]) for row in rows], dtype=torch.int64),
            domain=torch.tensor([int(row["domain"]) for row in rows], dtype=torch.int64),
            ref_loss=_nats(rows, "ref_loss"),
            ref_entropy=_nats(rows, "ref_entropy"),
            visit=self.visit,
        )


def _nats(rows: list[Mapping[str, np.ndarray | int]], column: str) -> Tensor | None:
    """(B, L) float32 of a column that the dataset may lack."""
    if column not in rows[0]:
        return None
    return torch.from_numpy(np.stack([row[column] for row in rows]).astype(np.float32))
