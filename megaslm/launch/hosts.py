"""Commands for hosts that are there: this one, those of a hostfile, those on each of which torchrun is started."""

from collections.abc import Mapping

from megaslm.config.cluster import HostfileCluster, LocalCluster, TorchrunCluster
from megaslm.launch.command import Command, one_process, script
from megaslm.launch.work import Work

Hosts = LocalCluster | HostfileCluster | TorchrunCluster
_Settings = Mapping[str, str | int | None]


def hosts_command(cluster: Hosts, work: Work) -> Command:
    """The command that starts `work` from this host. A verb for one process runs in one, here.

    Raises:
        ConfigError: the launcher is not there.
    """
    if not work.is_for_ranks:
        return Command(one_process(work), cluster.environment)
    words, settings = _launcher(cluster, work)
    told = {name: str(value) for name, value in settings.items() if value is not None}
    return Command(words, {**told, **cluster.environment})


def _launcher(cluster: Hosts, work: Work) -> tuple[tuple[str, ...], _Settings]:
    """The words that start it, and what is told by variables; null leaves one unset."""
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
            starts_again = cluster.max_restarts > 0
            return (script("torchrun.sh"), *(work.going_on() if starts_again else work).words), {
                "NODES": cluster.nodes,
                "RANKS_PER_NODE": cluster.ranks_per_node,
                "RENDEZVOUS": cluster.rendezvous,
                "MAX_RESTARTS": cluster.max_restarts,
            }
