"""Builds the command that starts a verb on a cluster, from the cluster's file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from megaslm.config.cluster import (
    Cluster,
    HostfileCluster,
    KubernetesCluster,
    LocalCluster,
    SlurmCluster,
    TorchrunCluster,
)
from megaslm.config.layers import gather
from megaslm.config.load import load
from megaslm.config.problems import show
from megaslm.errors import ConfigError
from megaslm.launch.command import Command, VerbCall, one_process, script
from megaslm.launch.kubernetes import kubernetes_command
from megaslm.launch.slurm import slurm_command

Hosts = LocalCluster | HostfileCluster | TorchrunCluster
_Settings = Mapping[str, str | int | None]


def load_cluster(path: str | Path) -> Cluster:
    """The checked cluster of a file.

    Raises:
        ConfigError: the message names everything that is wrong with the file.
    """
    kinds = {get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(Cluster)}
    settings = gather(Path(path), ()).settings
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{path}: kind = {show(kind)}: must be one of {', '.join(kinds)}")
    return load(kinds[kind], path).value


def hosts_command(cluster: Hosts, work: VerbCall) -> Command:
    """The command that starts `work` from this host. A verb for one process runs in one, here.

    Raises ConfigError where the launcher's file is missing.
    """
    if not work.is_for_ranks:
        return Command(one_process(work), cluster.environment)
    words, settings = _launcher(cluster, work)
    told = {name: str(value) for name, value in settings.items() if value is not None}
    return Command(words, {**told, **cluster.environment})


def _launcher(cluster: Hosts, work: VerbCall) -> tuple[tuple[str, ...], _Settings]:
    """The words that start it, and its environment variables; None leaves a variable unset."""
    match cluster:
        case LocalCluster():
            return (script("local.sh"), *work.words), {"RANKS": cluster.ranks, "MASTER_PORT": cluster.master_port}
        case HostfileCluster():
            return (script("hostfile.sh"), cluster.hostfile, *work.words), {
                "REMOTE_SHELL": cluster.remote_shell,
                "MASTER_ADDR": cluster.master_addr,
                "MASTER_PORT": cluster.master_port,
                "EXPORT": ",".join(cluster.environment) or None,
            }
        case TorchrunCluster():
            restarts = 0 if work.is_smoke_test else cluster.max_restarts
            return (script("torchrun.sh"), *(work.going_on() if restarts else work).words), {
                "NODES": cluster.nodes,
                "RANKS_PER_NODE": cluster.ranks_per_node,
                "RENDEZVOUS": cluster.rendezvous,
                "MAX_RESTARTS": restarts,
            }


def command_of(cluster: Cluster, work: VerbCall, after: Sequence[str] = ()) -> Command:
    """The command that starts `work` on `cluster`, when the Slurm jobs `after` have succeeded.

    Raises ConfigError where the cluster cannot start it.
    """
    if after and not isinstance(cluster, SlurmCluster):
        raise ConfigError(
            f"--after {after[0]}: only Slurm's jobs wait for others, and the cluster is of kind {cluster.kind}; start "
            "this when the other job has ended"
        )
    if work.is_share and isinstance(cluster, SlurmCluster | KubernetesCluster):
        raise ConfigError(
            f"--share: on a cluster of kind {cluster.kind} every job of `{work.verb}` gets its own part; leave it out"
        )
    match cluster:
        case SlurmCluster():
            return slurm_command(cluster, work, after)
        case KubernetesCluster():
            return kubernetes_command(cluster, work)
        case _:
            return hosts_command(cluster, work)
