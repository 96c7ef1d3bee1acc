"""Workers on a Ray cluster: where one machine is too few, and neither Slurm nor Kubernetes is at hand.

The cluster only places processes. Who does which task is settled in the ledger, as everywhere, so that its folder has
to be on a file system that all nodes share and whose locks hold between them.
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
"""The variable that names the cluster's head, as Ray's own tools read it."""
_LOOK_SECONDS = 0.25
_OTHERS_SECONDS = 10.0
_CONNECT_SECONDS = 10.0


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
        """Run `work`, which can be pickled, in so many processes with the numbers from 0 on, until all is done.

        Args:
            count: of processes.
            work: draws tasks until there are none. It must not raise; where it cannot go on, it says so elsewhere.
            gpus: of each process; without any it has a processor.
            folder: the ledger's; nodes that do not see a lock that this process holds there are refused.
            look: called some times a second; what it raises ends the processes and is raised.
            tasks_done: how many tasks are done by now.

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
        # A process that dies is replaced here, where it is counted.
        remote = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_retries=0)(_run)
        held = folder / f".locked-{secrets.token_hex(6)}"

        def start(number: int) -> Any:
            return remote.remote(work, number, str(Path.cwd()), str(held))

        running: dict[Any, int] = {}
        deaths = DeathWatch(tasks_done)
        # When the first process finds nothing more to do. Others may wait for a place that the cluster does not give.
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
    """Connects to the cluster whose head listens at `address`, HOST:PORT; null: where RAY_ADDRESS says.

    Raises:
        ConfigError: Ray is not installed, or no address is given or it is not one.
        LaunchError: nobody answers there.
    """
    # Read when Ray is imported. Without the others it tries for a quarter of an hour to reach a head that is not there.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", "1")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray is not installed; install the extra, `pip install megaslm[ray]`"
        ) from error
    address = address or os.environ.get(ADDRESS)
    if not address:
        raise ConfigError(f"--engine ray: name the cluster's head, HOST:PORT, by --ray-address or in {ADDRESS}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--ray-address {address}: must be HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise LaunchError(
            f"{address}: no Ray head answers there ({error}); start one by `ray start --head --port={port}`, or name "
            "another by --ray-address"
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


def _run(work: Callable[[int], None], number: int, folder: str, held: str) -> str | None:
    """On a node; gives why it cannot work there."""
    try:
        # Relative paths mean what they mean to whoever has started the job.
        os.chdir(folder)
        # Not made here, where it is another folder of this name.
        Path(held).stat()
        with locked(Path(held), busy=""):
            keeps_out = False
    except Busy:
        keeps_out = True
    except OSError as error:
        return (
            f"{error.filename}: {socket.gethostname()} does not see it ({error.strerror}); with --engine ray the "
            "folder that the job is started in, its inputs and its output have to be shared by all nodes"
        )
    if keeps_out:
        work(number)
        return None
    return (
        f"{held}: {socket.gethostname()} could lock what the job's first process has locked; with --engine ray the "
        "output has to be on a file system whose locks hold between the nodes"
    )
