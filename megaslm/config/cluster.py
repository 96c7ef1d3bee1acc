"""Where and how a job is started: one section per kind of cluster. The files in `launcher/` are examples.

These values end up in command lines, environments and manifests on other machines.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import Field, StrictInt, model_validator

from megaslm.config.section import (
    Address,
    HostAndPort,
    Image,
    JobName,
    LocalPath,
    NonNegative,
    ObjectName,
    PathInContainer,
    Port,
    Positive,
    Section,
    SlurmName,
    SlurmTime,
)
from megaslm.errors import ConfigError

T = TypeVar("T")
SET_BY_LAUNCHERS = (
    *("EXPORT", "MASTER_ADDR", "MASTER_PORT", "MAX_RESTARTS", "NODES", "RANKS", "RANKS_PER_NODE", "REMOTE_SHELL"),
    *("RENDEZVOUS", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "JOB_COMPLETION_INDEX"),
    *("MEGASLM_JOB", "MEGASLM_HOSTS", "MEGASLM_CLUSTER"),
)
"""Variables that the launchers set, for themselves and for each rank."""


@dataclass(frozen=True)
class Share:
    """Share `number` of `count`, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Reads `3/400`. Raises ConfigError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--share {text}: expected N/COUNT with 1 ≤ N ≤ COUNT, such as 3/400")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item, so that neighbouring items are spread evenly over the shares."""
        return items[self.number - 1 :: self.count]


class _Cluster(Section):
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the ranks. Credentials do not belong here."""

    @model_validator(mode="after")
    def _environment_can_be_set(self) -> "_Cluster":
        for name, value in self.environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment.{name}: a variable's name must hold letters, digits and _ only")
            if name in SET_BY_LAUNCHERS:
                raise ValueError(f"environment.{name}: is set by the launcher; remove it, and see the other settings")
            if "\0" in value:
                raise ValueError(f"environment.{name}: holds a null character; no environment variable can hold one")
        return self


class LocalCluster(_Cluster):
    """This host, started by launcher/local.sh."""

    kind: Literal["local"]
    ranks: Positive | None = None
    """Number of ranks; null is one per GPU, or 2 on a host without GPUs."""
    master_port: Port | None = None
    """The port at which the ranks meet; null is a free one. Jobs that share a host need different ports."""


class HostfileCluster(_Cluster):
    """The hosts of a DeepSpeed hostfile, started by launcher/hostfile.sh. All have the project at the same path."""

    kind: Literal["hostfile"]
    hostfile: LocalPath
    """The file that names one host per line: `node-1 slots=8`."""
    remote_shell: Literal["pdsh", "ssh"] = "pdsh"
    """The program that starts the ranks on the other hosts."""
    master_addr: Address | None = None
    """The address at which the ranks meet; null is the address of the first host."""
    master_port: Port = 29500
    """The port at which the ranks meet."""

    @model_validator(mode="after")
    def _environment_is_lines(self) -> "HostfileCluster":
        if "CUDA_VISIBLE_DEVICES" in self.environment:
            raise ValueError(
                "environment.CUDA_VISIBLE_DEVICES: DeepSpeed sets it, to as many GPUs as a host has slots; remove it"
            )
        for name, value in self.environment.items():
            if re.search(r"[\x00-\x1f\x7f]", value) or value != value.strip():
                raise ValueError(
                    f"environment.{name}: holds a control character such as a line break, or begins or ends with a "
                    "blank; DeepSpeed reads one variable per line: put the value into a file that all hosts see"
                )
        return self


class TorchrunCluster(_Cluster):
    """This host, or several hosts on each of which the same command is run. launcher/torchrun.sh restarts ranks that
    fail."""

    kind: Literal["torchrun"]
    nodes: Positive = 1
    """Number of hosts."""
    ranks_per_node: Positive | None = None
    """Ranks per host; null is one per GPU, or 2 on a host without GPUs."""
    rendezvous: HostAndPort | None = None
    """The address of one of the hosts, and the port at which all hosts meet. Only for several hosts."""
    max_restarts: NonNegative = 20
    """How often a host restarts its ranks after a failure."""

    @model_validator(mode="after")
    def _several_hosts_meet(self) -> "TorchrunCluster":
        if (self.nodes > 1) != (self.rendezvous is not None):
            raise ValueError(
                f"nodes = {self.nodes}, rendezvous = {self.rendezvous or 'null'}: several hosts need HOST:PORT to meet "
                "at, and one host needs null"
            )
        return self


class _Scheduled(_Cluster):
    nodes: Positive = 1
    """Nodes of a training job; prepare and score split their work into as many parts."""
    gpus_per_node: Positive | None = None
    """GPUs per node; each GPU has one rank."""
    ranks_per_node: Positive | None = None
    """Ranks per node, on nodes without GPUs."""

    @model_validator(mode="after")
    def _ranks_are_told(self) -> "_Scheduled":
        if (self.gpus_per_node is None) == (self.ranks_per_node is None):
            found = "none" if self.gpus_per_node is None else "both"
            raise ValueError(f"exactly one of gpus_per_node and ranks_per_node must be set; found {found}")
        return self

    @property
    def ranks_on_each_node(self) -> int:
        """Ranks per node."""
        return self.gpus_per_node or self.ranks_per_node or 1


SbatchOptions = dict[str, str | StrictInt | Literal[True]]


class OneProcess(Section):
    """The job of a verb that runs in one process and uses no GPU: export, mask, and --finish of prepare and score."""

    time: SlurmTime | None = None
    """Time limit, as for the cluster; null is the cluster's."""
    partition: SlurmName | None = None
    """The partition; null is the cluster's."""
    options: SbatchOptions | None = None
    """Further long options of sbatch, instead of the cluster's; null takes the cluster's."""


class SlurmCluster(_Scheduled):
    """Slurm, by the files in launcher/slurm. A job that is told to stop goes back into the queue."""

    kind: Literal["slurm"]
    time: SlurmTime | None = None
    """Time limit, in quotes, such as "2-00:00:00"; null is the partition's limit."""
    partition: SlurmName | None = None
    """The partition; null is the cluster's default."""
    account: SlurmName | None = None
    """The account that is charged."""
    options: SbatchOptions = Field(default_factory=dict)
    """Further long options of sbatch: `{qos: high, cpus-per-task: 12, exclusive: true}`."""
    one_process: OneProcess = OneProcess()
    """What is different for a verb that runs in one process."""

    @model_validator(mode="after")
    def _options_are_not_set_twice(self) -> "SlurmCluster":
        settled = {
            "account": "account",
            "array": "nodes",
            "chdir": "the folder in which the command is run",
            "export": "environment",
            "gpus-per-node": "gpus_per_node",
            "nodes": "nodes",
            "ntasks": "ranks_per_node",
            "ntasks-per-node": "ranks_per_node",
            "partition": "partition",
            "time": "time",
            "wrap": "the command",
        }
        for section, options in (("", self.options), ("one_process.", self.one_process.options or {})):
            for name, value in options.items():
                setting = f"{section}options.{name}"
                if not re.fullmatch(r"[a-z]+(?:-[a-z]+)*", name):
                    raise ValueError(f"{setting}: must be a long option of sbatch without its dashes, such as qos")
                if name in settled:
                    raise ValueError(f"{setting}: is set by {settled[name]}; remove it")
                if re.search(r"[\0\n]", str(value)):
                    raise ValueError(f"{setting}: must be on one line")
        return self


class KubernetesCluster(_Scheduled):
    """Kubernetes, by Jobs made from the manifests in launcher/k8s."""

    kind: Literal["kubernetes"]
    name: JobName = "megaslm"
    """Prefix of the jobs' names; the verb follows. One job per verb can exist at a time."""
    namespace: ObjectName = "default"
    """The namespace of the jobs."""
    image: Image
    """The container image; its `python` has MegaSLM's dependencies."""
    volume_claim: ObjectName
    """The PersistentVolumeClaim with the project and the data. Many nodes mount it at the same time."""
    mount_path: PathInContainer = "/shared"
    """Where the claim is mounted."""
    project: PathInContainer = "/shared/megaslm"
    """The project's folder inside the container; relative paths start there."""
    cpus_per_node: Positive
    """Cores per node."""
    memory_gib_per_node: Positive
    """Memory per node in GiB, shared memory included."""
    secret_name: ObjectName | None = None
    """A Secret for credentials. Its entries become environment variables of the ranks."""


Cluster = LocalCluster | HostfileCluster | TorchrunCluster | SlurmCluster | KubernetesCluster
