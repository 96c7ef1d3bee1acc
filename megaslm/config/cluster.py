"""Where and how a job is started: one section for each kind of cluster. The files in `launcher/` are examples.

What is written here ends up in command lines, environments and manifests on other machines.
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
    *("MEGASLM_JOB", "MEGASLM_HOSTS"),
)
"""Variables by which the launchers are told what to start, and each rank which one it is."""


@dataclass(frozen=True)
class Share:
    """The `number`-th of `count` shares, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """`3/400` as a share. Raises ConfigError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part {text}: expected N/COUNT with 1 ≤ N ≤ COUNT, such as 3/400")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item, so that what lies side by side is shared out evenly."""
        return items[self.number - 1 :: self.count]


class _Cluster(Section):
    """What every kind has."""

    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the ranks' environment. Credentials do not belong here."""

    @model_validator(mode="after")
    def _environment_can_be_set(self) -> "_Cluster":
        for name, value in self.environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment.{name}: a variable's name must hold letters, digits and _ only")
            if name in SET_BY_LAUNCHERS:
                raise ValueError(f"environment.{name}: is set by the launcher; take it out, and see the other settings")
            if "\0" in value:
                raise ValueError(f"environment.{name}: holds a null character, which no environment can")
        return self


class LocalCluster(_Cluster):
    """This host, by launcher/local.sh."""

    kind: Literal["local"]
    ranks: Positive | None = None
    """Number of ranks; null is one a GPU, or 2 where there is none."""
    master_port: Port = 29500
    """The port at which the ranks meet; another one for each job that a host has at a time."""


class HostfileCluster(_Cluster):
    """The hosts of a DeepSpeed hostfile, by launcher/hostfile.sh. Each has the project at the same path."""

    kind: Literal["hostfile"]
    hostfile: LocalPath
    """The file that names one host a line: `node-1 slots=8`."""
    remote_shell: Literal["pdsh", "ssh"] = "pdsh"
    """What starts the ranks of the other hosts."""
    master_addr: Address | None = None
    """The address at which the ranks meet; null is the first host's own."""
    master_port: Port = 29500
    """The port there."""

    @model_validator(mode="after")
    def _environment_is_lines(self) -> "HostfileCluster":
        if "CUDA_VISIBLE_DEVICES" in self.environment:
            raise ValueError(
                "environment.CUDA_VISIBLE_DEVICES: DeepSpeed sets it, to as many GPUs as a host has slots; take it out"
            )
        for name, value in self.environment.items():
            if re.search(r"[\x00-\x1f\x7f]", value) or value != value.strip():
                raise ValueError(
                    f"environment.{name}: holds a line break or another control character, or begins or ends with a "
                    "blank, and DeepSpeed reads one variable a line; put such a value into a file that all hosts see"
                )
        return self


class TorchrunCluster(_Cluster):
    """This host, or several on each of which the same command is given, by launcher/torchrun.sh: ranks that fail are
    started again."""

    kind: Literal["torchrun"]
    nodes: Positive = 1
    """Number of hosts."""
    ranks_per_node: Positive | None = None
    """Ranks on each host; null is one a GPU, or 2 where there is none."""
    rendezvous: HostAndPort | None = None
    """For several hosts: one of them, and the port there at which all meet."""
    max_restarts: NonNegative = 20
    """How often a host starts its ranks again after a failure."""

    @model_validator(mode="after")
    def _several_hosts_meet(self) -> "TorchrunCluster":
        if (self.nodes > 1) != (self.rendezvous is not None):
            raise ValueError(
                f"nodes = {self.nodes}, rendezvous = {self.rendezvous or 'null'}: several hosts need HOST:PORT to meet "
                "at, and one host needs none"
            )
        return self


class _Scheduled(_Cluster):
    """A cluster that gives out nodes."""

    nodes: Positive = 1
    """Nodes of a training; parts among which prepare and score share their work."""
    gpus_per_node: Positive | None = None
    """GPUs of each node, one rank on each."""
    ranks_per_node: Positive | None = None
    """Where there are no GPUs: ranks on each node."""

    @model_validator(mode="after")
    def _ranks_are_told(self) -> "_Scheduled":
        if (self.gpus_per_node is None) == (self.ranks_per_node is None):
            found = "none" if self.gpus_per_node is None else "both"
            raise ValueError(f"exactly one of gpus_per_node and ranks_per_node must be set; found {found}")
        return self

    @property
    def ranks_on_each_node(self) -> int:
        """The ranks of one node."""
        return self.gpus_per_node or self.ranks_per_node or 1


class SlurmCluster(_Scheduled):
    """Slurm, by the files in launcher/slurm. The job goes back into the queue when it was told to stop."""

    kind: Literal["slurm"]
    time: SlurmTime | None = None
    """Time limit, in quotes, such as "2-00:00:00"; null is the partition's."""
    partition: SlurmName | None = None
    """The partition; null is the cluster's default."""
    account: SlurmName | None = None
    """Who is charged."""
    options: dict[str, str | StrictInt | Literal[True]] = Field(default_factory=dict)
    """More of sbatch's long options: `{qos: high, cpus-per-task: 12, exclusive: true}`."""

    @model_validator(mode="after")
    def _options_are_not_set_twice(self) -> "SlurmCluster":
        settled = {
            "account": "account",
            "array": "nodes",
            "chdir": "the folder in which the command is given",
            "export": "environment",
            "gpus-per-node": "gpus_per_node",
            "nodes": "nodes",
            "ntasks": "ranks_per_node",
            "ntasks-per-node": "ranks_per_node",
            "partition": "partition",
            "time": "time",
            "wrap": "the command",
        }
        for name, value in self.options.items():
            if not re.fullmatch(r"[a-z]+(?:-[a-z]+)*", name):
                raise ValueError(f"options.{name}: must be a long option of sbatch without its dashes, such as qos")
            if name in settled:
                raise ValueError(f"options.{name}: is settled by {settled[name]}; take it out")
            if re.search(r"[\0\n]", str(value)):
                raise ValueError(f"options.{name}: must be on one line")
        return self


class KubernetesCluster(_Scheduled):
    """Kubernetes, by Jobs that are made of the manifests in launcher/k8s."""

    kind: Literal["kubernetes"]
    name: JobName = "megaslm"
    """What jobs are called, followed by their verb: one at a time of each."""
    namespace: ObjectName = "default"
    """The namespace that they are in."""
    image: Image
    """The container image; its `python` has what MegaSLM depends on."""
    volume_claim: ObjectName
    """The PersistentVolumeClaim, mounted by many nodes at a time, with the project and the data."""
    mount_path: PathInContainer = "/shared"
    """Where the claim is mounted."""
    project: PathInContainer = "/shared/megaslm"
    """This project's folder there; relative paths are read from it."""
    cpus_per_node: Positive
    """Cores of each node."""
    memory_gib_per_node: Positive
    """Memory of each node, shared memory included."""
    secret_name: ObjectName | None = None
    """A Secret whose entries become variables of the ranks' environment, for credentials."""


Cluster = LocalCluster | HostfileCluster | TorchrunCluster | SlurmCluster | KubernetesCluster
