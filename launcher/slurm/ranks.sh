#!/usr/bin/env bash
# Runs a verb of MegaSLM in the Slurm job that this script is a part of, one rank per task. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: launcher/slurm/ranks.sh VERB [ARGUMENT ...]

The .sbatch files beside this script call it; submit those. Runs `python -m megaslm VERB ARGUMENT ...` once per task, all
started, signalled and ended by Slurm itself, and exits with the status of the job. One that was told to stop (75) goes
back into the queue by itself.

The ranks get the whole environment of this script. They meet at the job's first node, at a port that follows from the
number of the job.
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    echo "SLURM_JOB_ID is not set: submit one of the .sbatch files of launcher/slurm with sbatch" >&2
    exit 2
fi

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$project/launcher/saying.sh"

# `megaslm launch` gives sbatch its options.
submit_with() {
    if [[ -n "${MEGASLM_CLUSTER:-}" ]]; then echo "set $1 in $MEGASLM_CLUSTER"; else echo "submit the job with $2"; fi
}
nodes="$SLURM_JOB_NUM_NODES"
ranks_per_node="${SLURM_NTASKS_PER_NODE:-1}"
if ((ranks_per_node != ${SLURM_GPUS_ON_NODE:-$ranks_per_node})); then
    with="$(submit_with "gpus_per_node: $SLURM_GPUS_ON_NODE" "--ntasks-per-node=$SLURM_GPUS_ON_NODE")"
    echo "$ranks_per_node tasks and $SLURM_GPUS_ON_NODE GPUs on a node: each rank takes one GPU; $with," \
        "or on CPUs unset SLURM_GPUS_ON_NODE in the environment" >&2
    exit 2
fi
if [[ -n "${SLURM_GPUS_PER_TASK:-}" ]]; then
    with="$(submit_with "gpus_per_node: $ranks_per_node" "--gpus-per-node=$ranks_per_node")"
    echo "--gpus-per-task shows each rank one GPU, but it looks for its own among all of its node; $with instead," \
        "and unset SLURM_GPUS_PER_TASK in the environment" >&2
    exit 2
fi

if [[ -x "$project/.venv/bin/python" ]]; then PATH="$project/.venv/bin:$PATH"; fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR="${hosts[0]}"
# This script runs on that host, whose own name may be a loopback address to itself, as on Debian.
if [[ "$(getent hosts "$MASTER_ADDR")" == 127.* ]]; then MASTER_ADDR="$(hostname -I | cut -d ' ' -f 1)"; fi
# Below the ports that Linux gives to whoever asks for any.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
WORLD_SIZE=$((nodes * ranks_per_node))
LOCAL_WORLD_SIZE="$ranks_per_node"
OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
# NODE:RANKS, with commas between, in the order of the ranks: so the first one can name hosts whose ranks do not come.
printf -v MEGASLM_HOSTS "%s:$ranks_per_node," "${hosts[@]}"
MEGASLM_HOSTS="${MEGASLM_HOSTS%,}"
export PATH MASTER_ADDR MASTER_PORT WORLD_SIZE LOCAL_WORLD_SIZE OMP_NUM_THREADS MEGASLM_HOSTS

# What srun would take from the job's environment, in some versions and not in others, is said outright.
srun_options=(--nodes="$nodes" --ntasks="$WORLD_SIZE" --ntasks-per-node="$ranks_per_node" --export=ALL)
# Node after node, as MASTER_ADDR and MEGASLM_HOSTS have it. The variable would count for more than the option.
srun_options+=(--distribution=block)
unset SLURM_HOSTFILE
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then srun_options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
# Where one rank has ended, the others do so by themselves, as soon as what is theirs is written. srun would cut that short
# (--kill-on-bad-exit=1), and the status would be that of a fault. It ends what is still there after --wait; by then Slurm
# has found out whether a node was lost (SlurmdTimeout, by default 300 s), and puts such a job back by itself.
srun_options+=(--kill-on-bad-exit=0 --wait=600)

# The controller of a busy cluster does not always answer.
patiently() {
    local try
    for try in 1 2 3 4 5 6; do
        if "$@"; then return 0; fi
        sleep $((try * 5))
    done
    "$@"
}

# A signal for all processes of the job comes here too: the ranks answer it, and this script hands their status on.
# SIGTERM is left alone, as it comes here only when the job is over: cancelled, or out of time.
trap : USR1
# srun reports each rank's status after what the rank has said. What it says of 2 and 75 the ranks have told themselves.
without_ranks_statuses() {
    trap '' TERM INT HUP USR1
    sed -uE '/^srun: error: .*: tasks? [^:]*: Exited with exit code (2|75)$/d' >&2
}
say_start "job $SLURM_JOB_ID, $(counted "$WORLD_SIZE" rank) on $SLURM_JOB_NODELIST" "$@"
exec {errors}> >(without_ranks_statuses)
filter=$!
status=0
srun "${srun_options[@]}" "$project/launcher/slurm/rank.sh" "$@" 2>&"$errors" {errors}>&- || status=$?
exec {errors}>&-
wait "$filter" || true

# 75: it has saved. 138, 143: it was told by SIGUSR1 or SIGTERM when there was nothing to save.
if ((status == 75 || status == 138 || status == 143)); then
    # A job that was cancelled would come back as well.
    state="$(patiently squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)"
    if [[ "$state" == RUNNING ]]; then patiently scontrol requeue "$SLURM_JOB_ID"; fi
fi
say_end "$status"
exit "$status"
