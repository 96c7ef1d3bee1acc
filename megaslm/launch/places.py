"""The hosts of a cluster, looked at in a dry run: programs, hosts that answer, ports; and where a job's output goes."""

import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

from megaslm.config.cluster import (
    Cluster,
    HostfileCluster,
    KubernetesCluster,
    LocalCluster,
    SlurmCluster,
    TorchrunCluster,
)
from megaslm.launch.command import Command, VerbCall
from megaslm.launch.findings import Findings, Reach
from megaslm.launch.kubernetes import job_name

_LONGEST_ANSWER_SECONDS = 30


def findings_of(cluster: Cluster) -> Findings:
    """No findings yet; they know which files of the cluster this host sees."""
    match cluster:
        case KubernetesCluster():
            findings = Findings(Reach.NONE, "only the pods see them")
            if shutil.which("kubectl") is None:
                findings.warnings.append(
                    "kubectl is not installed on this host; create the objects from one that has it"
                )
        case SlurmCluster() if shutil.which("sbatch") is None:
            findings = Findings(Reach.NONE, "without sbatch this host is not one of the cluster's")
            findings.warnings.append("sbatch is not installed on this host; give the command on one that has it")
        case SlurmCluster() | HostfileCluster():
            findings = Findings(Reach.SHARED, "not on this host; the hosts of the job may have them")
        case _:
            findings = Findings(Reach.ALL, "")
    return findings


def look_at_hosts(findings: Findings, cluster: Cluster, work: VerbCall, command: Command, file: Path) -> None:
    """Looks whether the launcher finds what it needs. `file` is the cluster's, `command` starts `work` on it."""
    if not work.is_for_ranks:
        return
    match cluster:
        case LocalCluster() if cluster.master_port is not None:
            _look_at_port(findings, cluster.master_port)
        case HostfileCluster():
            _ask_hosts(findings, command, file)
        case TorchrunCluster() if cluster.rendezvous is not None:
            _look_for_rendezvous(findings, cluster.rendezvous)


def ranks_of(cluster: Cluster) -> int | None:
    """The number of ranks of a training; None where it depends on the GPUs of a host, or a hostfile."""
    match cluster:
        case LocalCluster():
            return cluster.ranks
        case TorchrunCluster():
            return None if cluster.ranks_per_node is None else cluster.nodes * cluster.ranks_per_node
        case HostfileCluster():
            return None
        case _:
            return cluster.nodes * cluster.ranks_on_each_node


def ranks_in_words(cluster: Cluster, file: Path) -> str:
    """The number of ranks of a training, and the settings of `file` that it follows from."""
    match cluster:
        case LocalCluster():
            told = f"ranks = {cluster.ranks}"
        case TorchrunCluster():
            told = f"nodes = {cluster.nodes} × ranks_per_node = {cluster.ranks_per_node}"
        case HostfileCluster():
            told = "a rank per slot"
        case _:
            each = "ranks_per_node" if cluster.gpus_per_node is None else "gpus_per_node"
            told = f"nodes = {cluster.nodes} × {each} = {cluster.ranks_on_each_node}"
    return f"{ranks_of(cluster)} ranks ({told} in {file})"


def where_output_goes(cluster: Cluster, work: VerbCall, job: str | None = None) -> str:
    """Where the output is found of a Slurm job of that number, or of another cluster's, as a line."""
    match cluster:
        case SlurmCluster():
            return _slurm_output(cluster, work, job)
        case KubernetesCluster():
            name = f"batch.kubernetes.io/job-name={job_name(cluster, work)}"
            return (
                f"output: kubectl logs --namespace {cluster.namespace} --selector {name} --follow --prefix --tail -1 "
                f"--max-log-requests {cluster.nodes}"
            )
        case HostfileCluster() if work.is_for_ranks:
            return "output: on this terminal; each line begins with the name of its host"
        case TorchrunCluster() if cluster.nodes > 1 and work.is_for_ranks:
            return "output: each host's on the terminal of its command"
        case _:
            return "output: on this terminal"


def _slurm_output(cluster: SlurmCluster, work: VerbCall, job: str | None) -> str:
    """In `options` a user may choose another file; the default is sbatch's own."""
    is_array = work.can_be_shared
    is_small = work.verb != "train" and not is_array
    options = cluster.one_process.options if is_small else None
    chosen = (cluster.options if options is None else options).get("output")
    if chosen is not None:
        return f"output: {Path.cwd() / str(chosen)}, as options.output has it"
    number = "%A" if is_array else "%j"
    meanings = [f"{number} is the number that sbatch prints"] if job is None else []
    meanings += ["%a is that of the task"] if is_array else []
    name = f"slurm-{job or number}{'_%a' if is_array else ''}.out"
    return f"output: {Path.cwd() / name}" + (f" ({', '.join(meanings)})" if meanings else "")


def _look_at_port(findings: Findings, port: int) -> None:
    for address in ("127.0.0.1", ""):
        try:
            socket.create_server((address, port)).close()
        except OSError as error:
            reason = f"cannot listen there on {socket.gethostname()} ({os.strerror(error.errno or 0)})"
            findings.problems.append(f"master_port = {port}: {reason}; set another, or wait for the job that has it")
            return


def _ask_hosts(findings: Findings, command: Command, file: Path) -> None:
    """Starts the launcher's own checks: of the hostfile, and of each host by ssh."""
    script, *arguments = command.words
    try:
        asked = subprocess.run(
            [script, "--check", *arguments],
            env=command.environment_here(file),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        check = shlex.join([script, "--check", *arguments])
        findings.problems.append(f"the hosts have not answered within {_LONGEST_ANSWER_SECONDS} s; try `{check}`")
        return
    if asked.returncode != 0:
        findings.problems += asked.stderr.splitlines() or [f"{script} --check ended with status {asked.returncode}"]


def _look_for_rendezvous(findings: Findings, rendezvous: str) -> None:
    host, _, port = rendezvous.rpartition(":")
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        findings.warnings.append(
            f"rendezvous = {rendezvous}: {socket.gethostname()} cannot resolve {host} ({error.strerror}); every "
            "host of the job must, and waits ten minutes for it"
        )
