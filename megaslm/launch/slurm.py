"""Commands for Slurm. Training is a job, prepare and score are arrays, and a verb of one process is a small job.

The job inherits the environment of sbatch, which passes on all of it by default.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from megaslm.config.cluster import SlurmCluster
from megaslm.errors import ConfigError
from megaslm.launch.command import PROJECT, Command, VerbCall, script


def slurm_command(cluster: SlurmCluster, work: VerbCall, after: Sequence[str] = ()) -> Command:
    """The command, made of the files in launcher/slurm. The job starts when the jobs `after` have succeeded.

    Raises ConfigError where the current folder is not the project's folder, or a job's number is none.
    """
    if Path.cwd().resolve() != PROJECT:
        raise ConfigError(f"{Path.cwd()}: a Slurm job starts in the folder of its submission; run this in {PROJECT}")
    waits = {"dependency": f"afterok:{':'.join(map(_number, after))}"} if after else {}
    return Command(("sbatch", "--parsable", *_words(cluster, work, waits)), cluster.environment, is_submission=True)


def _number(job: str) -> str:
    """The number of a job, as `sbatch --parsable` prints it: the name of a cluster may follow it."""
    number = job.partition(";")[0]
    if not re.fullmatch(r"[1-9][0-9]*(?:_[0-9]+)?", number):
        raise ConfigError(f"--after {job}: must be the number of a job, as `megaslm launch` prints it")
    return number


def _words(cluster: SlurmCluster, work: VerbCall, waits: dict[str, str]) -> tuple[str, ...]:
    account = {"account": cluster.account}
    place = {"partition": cluster.partition, **account, "time": cluster.time, **cluster.options, **waits}
    if work.verb == "train":
        # The script itself adds --resume.
        arguments = [argument for argument in work.arguments if argument != "--resume"]
        size = {"nodes": cluster.nodes, **_ranks(cluster)}
        return *_options({**size, **place}), script("slurm/train.sbatch"), *arguments
    if work.can_be_shared:
        ranks = _ranks(cluster) if work.is_for_ranks else {}
        size = {"array": f"1-{cluster.nodes}", **ranks}
        return *_options({**size, **place}), script(f"slurm/{work.verb}_array.sbatch"), *work.arguments
    own = cluster.one_process
    place |= {"partition": own.partition or cluster.partition, "time": own.time or cluster.time}
    if own.options is not None:
        place = {name: place[name] for name in ("partition", "account", "time")}
        place |= {**own.options, **waits}
    return *_options({"nodes": 1, "ntasks": 1, **place}), script("slurm/one_process.sbatch"), *work.words


def _ranks(cluster: SlurmCluster) -> dict[str, str | int | None]:
    return {
        "gpus-per-node": cluster.gpus_per_node,
        "ntasks-per-node": cluster.ranks_on_each_node,
    }


def _options(values: Mapping[str, str | int | None]) -> list[str]:
    given = {name: value for name, value in values.items() if value is not None}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
