"""Ranks and their collectives. One process without a launcher is a world of one."""

import atexit
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from megaslm.engine.network import LOOPBACK
from megaslm.engine.rendezvous import LONGEST_JOINING, meet
from megaslm.engine.seat import seat_in
from megaslm.errors import ConfigError, MegaSLMError, PeerFailed

T = TypeVar("T")

# The other ranks wait while the first one reads a large model from a slow file system; NCCL's own limit is 10 minutes.
# The watchdog of training ends a job that hangs sooner, and knows which rank the others wait for.
LONGEST_WAIT = timedelta(minutes=60)


@dataclass(frozen=True)
class World:
    """This process's rank, and the number of ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once per job."""
        return self.rank == 0

    @property
    def is_first_on_host(self) -> bool:
        """Whether this rank does what is done once per host."""
        return os.environ.get("LOCAL_RANK", "0") == "0"


def join_world() -> World:
    """Joins the process group that the launcher described in the environment; without a launcher, makes one of its own.

    Raises:
        LaunchError: the environment describes one only in part, see `seat.seat_in`.
        ConfigError: this rank has no GPU while other ranks have one.
        MegaSLMError: ranks do not arrive or do not fit together, see `rendezvous.meet`.
    """
    seat = seat_in(os.environ)
    if seat.world_size == 1:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR=LOOPBACK)
    device = _own_device(seat.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _connect(seat.rank, seat.world_size, device)
        _tell_host_ranks()
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def _own_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise ConfigError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} is number {local_rank + 1} of its host, which has "
            f"{gpus} GPUs; start fewer ranks there, or find out why a GPU is missing"
        )
    return torch.device("cuda", local_rank)


def _connect(rank: int, size: int, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    store = meet(rank, size, device.type)
    store.set_timeout(LONGEST_WAIT)
    try:
        # device_id makes NCCL connect at once, so that a bad link shows here and not in the first step.
        dist.init_process_group(
            backend="nccl" if on_gpu else "gloo",
            device_id=device if on_gpu else None,
            # gloo makes one rank of each pair listen, and that rank waits five times as long.
            timeout=LONGEST_JOINING if on_gpu else LONGEST_JOINING / 5,
            store=store,
            rank=rank,
            world_size=size,
        )
    except RuntimeError as error:
        interface = os.environ["NCCL_SOCKET_IFNAME" if on_gpu else "GLOO_SOCKET_IFNAME"]
        raise MegaSLMError(
            f"{socket.gethostname()} has no connection to the other ranks over {interface}: {error}; check whether "
            "a firewall between the hosts blocks ports other than MASTER_PORT"
        ) from error
    # The short limit is for connecting; work may take longer.
    _set_pg_timeout(LONGEST_WAIT)


def _tell_host_ranks() -> None:
    hosts = gather_objects(socket.gethostname())
    count = os.environ.get("LOCAL_SIZE", str(hosts.count(socket.gethostname())))
    os.environ.setdefault("LOCAL_WORLD_SIZE", count)


def leave_world() -> None:
    """Leaves the process group, after every rank has reached this point."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """Ends this process after its exit handlers, but without the interpreter's shutdown.

    A thread of gloo that releases a tensor during the shutdown would abort the process, and change the exit status that
    launchers and schedulers act upon.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A full disk under stdout must not change the status.
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on every rank. Works in place and returns the tensor."""
    dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, stacked in rank order, on every rank: (ranks, …). All have one shape."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return torch.stack(gathered)


def send_to(rank: int, tensor: Tensor) -> None:
    """Sends a tensor to a rank that calls `receive_from` with the same shape and dtype."""
    _pass(dist.isend, rank, tensor)


def receive_from(rank: int, tensor: Tensor) -> None:
    """Fills a tensor with one of the same shape and dtype from a rank that calls `send_to`."""
    _pass(dist.irecv, rank, tensor)


def _pass(operation: Callable[..., object], peer: int, tensor: Tensor) -> None:
    # Outside of a batch, torch with NCCL takes it for a collective of all ranks, and warns.
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer)]):
        work.wait()


def wait_for_all() -> None:
    """Returns when every rank has reached this point."""
    dist.barrier()


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in rank order, on every rank."""
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def on_first_rank(action: Callable[[], T]) -> T:
    """Runs `action` on the first rank only and returns its result on all ranks.

    Raises:
        Exception: the exception of `action`, on the first rank; `PeerFailed` with the same message on the others.
    """
    outcome: list[object] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # Any error must reach the other ranks, which wait in the collective below.
            failure = error
            outcome[1] = (str(error), error.exit_status if isinstance(error, MegaSLMError) else 1)
    dist.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise PeerFailed(*cast(tuple[str, int], outcome[1]))
    return cast(T, outcome[0])
