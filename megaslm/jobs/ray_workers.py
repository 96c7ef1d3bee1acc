"""Workers on a Ray cluster, for work that is too much for one machine where neither Slurm nor Kubernetes is available.

The cluster only places processes. The ledger assigns the tasks, as in every job, so its folder must be on a file system
that all nodes share and whose locks hold between nodes.
"""

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaslm.errors import ConfigError, DataError, LaunchError
from megaslm.files import Busy, locked
from megaslm.jobs.workers import DeathWatch

ADDRESS = "RAY_ADDRESS"
"""The variable with the address of the cluster's head, which Ray's own tools read too."""
_LOOK_SECONDS = 0.25
_OTHERS_SECONDS = 10.0
_CONNECT_SECONDS = 10.0
_LAST_PORT = 65_535


@dataclass(frozen=True)
class RayCluster:
    """A cluster that this process is connected to."""

    cpus: int
    gpus: int

    def run(
        self,
        count: int,
        work: Callable[[int], None],
        *,
        gpus: int,
        folder: Path,
        look: Callable[[], None],
        tasks_done: Callable[[], int],
    ) -> None:
        """Run `work` as `run_workers` does, in processes of the cluster.

        Args:
            gpus: per process; a process without GPUs gets one processor.
            folder: the ledger's. Nodes that do not see a lock of this process there raise an error.

        Raises:
            DataError: locks do not hold between the nodes.
            LaunchError: the cluster has nothing to run a process on.
            MegaSLMError: one process after the other dies, and no task is done meanwhile.
        """
        import ray

        if count == 0:
            raise LaunchError(
                "the Ray cluster has neither processors nor GPUs to give; start its nodes with --num-cpus"
            )
        died = (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.LocalRayletDiedError,
        )
        # Ray must not replace dead processes: they are counted and replaced here.
        remote = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_retries=0)(_run)
        held = folder / f".locked-{secrets.token_hex(6)}"

        def start(number: int) -> Any:
            return remote.remote(work, number, str(Path.cwd()), str(held))

        running: dict[Any, int] = {}
        deaths = DeathWatch(tasks_done)
        # The job ends when the first process finds no more work. Others may still wait for resources of the cluster.
        ended_at: float | None = None
        with locked(held, busy=f"{held} is locked by another process"):
            try:
                running |= {start(number): number for number in range(count)}
                while running and (ended_at is None or time.monotonic() - ended_at < _OTHERS_SECONDS):
                    ended, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
                    look()
                    for each in ended:
                        number = running.pop(each)
                        try:
                            refusal: str | None = ray.get(each)
                        except died as error:
                            deaths.count(str(error).splitlines()[0])
                            running[start(number)] = number
                            continue
                        if refusal is not None:
                            raise DataError(refusal)
                        ended_at = ended_at or time.monotonic()
            finally:
                for each in running:
                    ray.cancel(each, force=True)
        held.unlink(missing_ok=True)


@contextmanager
def ray_cluster(address: str | None) -> Iterator[RayCluster]:
    """Connects to the cluster whose head listens at `address`, HOST:PORT; None reads RAY_ADDRESS.

    Raises:
        ConfigError: Ray is not installed, or the address is missing or malformed.
        LaunchError: no head answers there.
    """
    address = _head_at(address or os.environ.get(ADDRESS))
    # Ray reads these on import. Without them it tries for 15 minutes to reach a head that does not exist.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", "1")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray is not installed; `make install EXTRAS=ray` in MegaSLM's folder"
        ) from error
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LaunchError(f"{address}: Ray cannot be joined there: {error}") from error
    try:
        resources = ray.cluster_resources()
        yield RayCluster(cpus=int(resources.get("CPU", 0)), gpus=int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()


def _head_at(address: str | None) -> str:
    """The address, where a process listens. The errors are those of `ray_cluster`."""
    if not address:
        raise ConfigError(f"--engine ray: name the cluster's head, HOST:PORT, by --ray-address or in {ADDRESS}")
    host, _, port = address.rpartition(":")
    # The C library takes a larger port for another one: 999999 for 16959.
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise ConfigError(f"--ray-address {address}: must be HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise LaunchError(
            f"{address}: no Ray head answers there ({error}); start one by `ray start --head --port={port}`, or name "
            "another by --ray-address"
        ) from error
    return address


def _run(work: Callable[[int], None], number: int, folder: str, held: str) -> str | None:
    """Runs on a node. Returns the reason where it cannot work there."""
    try:
        # Relative paths then mean the same as in the process that started the job.
        os.chdir(folder)
        # The folder is never created: a new one would be another folder of the same name.
        Path(held).stat()
        with locked(Path(held), busy=""):
            keeps_out = False
    except Busy:
        keeps_out = True
    except OSError as error:
        return (
            f"{error.filename}: {socket.gethostname()} does not see it ({error.strerror}); with --engine ray the "
            "folder that the job is started in, its inputs and its output must be shared by all nodes"
        )
    if keeps_out:
        work(number)
        return None
    return (
        f"{held}: {socket.gethostname()} could take a lock that the job's first process holds; with --engine ray the "
        "output must be on a file system whose locks hold between the nodes"
    )
