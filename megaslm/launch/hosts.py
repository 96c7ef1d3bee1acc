"""Commands for hosts that are there: this one, those of a hostfile, those on each of which torchrun is started.

Verbs for one process run in one, on this host.
"""

from collections.abc import Mapping

from megaslm.config.cluster import HostfileCluster, LocalCluster, TorchrunCluster
from megaslm.launch.command import Command, one_process, script
from megaslm.launch.work import Work


def local_command(cluster: LocalCluster, work: Work) -> Command:
    """By launcher/local.sh."""
    if not work.is_for_ranks:
        return Command(one_process(work), cluster.environment)
    settings = {"RANKS": cluster.ranks, "MASTER_PORT": cluster.master_port}
    return Command((script("local.sh"), *work.words), {**_set(settings), **cluster.environment})


def hostfile_command(cluster: HostfileCluster, work: Work) -> Command:
    """By launcher/hostfile.sh."""
    if not work.is_for_ranks:
        return Command(one_process(work), cluster.environment)
    settings = {
        "REMOTE_SHELL": cluster.remote_shell,
        "MASTER_ADDR": cluster.master_addr,
        "MASTER_PORT": cluster.master_port,
        "EXPORT": ",".join(cluster.environment) or None,
    }
    words = (script("hostfile.sh"), cluster.hostfile, *work.words)
    return Command(words, {**_set(settings), **cluster.environment})


def torchrun_command(cluster: TorchrunCluster, work: Work) -> Command:
    """By launcher/torchrun.sh."""
    if not work.is_for_ranks:
        return Command(one_process(work), cluster.environment)
    settings = {
        "NODES": cluster.nodes,
        "RANKS_PER_NODE": cluster.ranks_per_node,
        "RENDEZVOUS": cluster.rendezvous,
        "MAX_RESTARTS": cluster.max_restarts,
    }
    words = (
        script("torchrun.sh"),
        *(work.going_on() if cluster.max_restarts else work).words,
    )
    return Command(words, {**_set(settings), **cluster.environment})


def _set(settings: Mapping[str, str | int | None]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items() if value is not None}
