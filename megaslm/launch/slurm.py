"""Commands for Slurm. Training is a job, prepare and score are arrays, and a verb of one process is a step of its own.

The job inherits the environment of sbatch, which passes on all of it by default.
"""

from collections.abc import Mapping
from pathlib import Path

from megaslm.config.cluster import SlurmCluster
from megaslm.errors import ConfigError
from megaslm.launch.command import PROJECT, Command, VerbCall, one_process, script


def slurm_command(cluster: SlurmCluster, work: VerbCall) -> Command:
    """The command, made of the files in launcher/slurm.

    Raises ConfigError where the current folder is not the project's folder.
    """
    if Path.cwd().resolve() != PROJECT:
        raise ConfigError(f"{Path.cwd()}: a Slurm job starts in the folder of its submission; run this in {PROJECT}")
    return Command(_words(cluster, work), cluster.environment)


def _words(cluster: SlurmCluster, work: VerbCall) -> tuple[str, ...]:
    place = {
        "partition": cluster.partition,
        "account": cluster.account,
        "time": cluster.time,
        **cluster.options,
    }
    if work.verb == "train":
        # The script itself adds --resume.
        arguments = [argument for argument in work.arguments if argument != "--resume"]
        size = {"nodes": cluster.nodes, **_ranks(cluster)}
        return (
            "sbatch",
            *_options({**size, **place}),
            script("slurm/train.sbatch"),
            *arguments,
        )
    if work.can_be_shared:
        ranks = _ranks(cluster) if work.is_for_ranks else {}
        size = {"array": f"1-{cluster.nodes}", **ranks}
        return (
            "sbatch",
            *_options({**size, **place}),
            script(f"slurm/{work.verb}_array.sbatch"),
            *work.arguments,
        )
    return ("srun", *_options({"nodes": 1, "ntasks": 1, **place}), *one_process(work))


def _ranks(cluster: SlurmCluster) -> dict[str, str | int | None]:
    return {
        "gpus-per-node": cluster.gpus_per_node,
        "ntasks-per-node": cluster.ranks_on_each_node,
    }


def _options(values: Mapping[str, str | int | None]) -> list[str]:
    given = {name: value for name, value in values.items() if value is not None}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
