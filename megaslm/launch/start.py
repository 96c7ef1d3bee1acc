"""From a cluster and a verb to the command that starts it there."""

from megaslm.config.cluster import Cluster, KubernetesCluster, SlurmCluster
from megaslm.errors import ConfigError
from megaslm.launch.command import Command
from megaslm.launch.hosts import hosts_command
from megaslm.launch.kubernetes import kubernetes_command
from megaslm.launch.slurm import slurm_command
from megaslm.launch.work import Work


def command_of(cluster: Cluster, work: Work) -> Command:
    """The command that starts `work` on `cluster`.

    Raises:
        ConfigError: it cannot be started there as it is.
    """
    if work.is_share and isinstance(cluster, SlurmCluster | KubernetesCluster):
        raise ConfigError(
            f"--part: on a cluster of kind {cluster.kind} every job of `{work.verb}` is told its part; take it out"
        )
    match cluster:
        case SlurmCluster():
            return slurm_command(cluster, work)
        case KubernetesCluster():
            return kubernetes_command(cluster, work)
        case _:
            return hosts_command(cluster, work)
