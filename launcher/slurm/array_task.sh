#!/usr/bin/env bash
# Does the share of prepare or score that falls to one task of a Slurm array. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: launcher/slurm/array_task.sh prepare|score ARGUMENT ...

Runs `megaslm VERB ARGUMENT ... --share N/COUNT`, where N is the number of the task in the array and COUNT the array's size;
prepare_array.sbatch and score_array.sbatch, which say how to submit them, call it in each task.

  PARTS   COUNT, where only some tasks of an array are submitted again

A task that was killed is submitted again (`--requeue` does so by itself where Slurm or a node was the reason), and does
what is missing:

  sbatch --array=3,17,40 --export=ALL,PARTS=64 [OPTION ...] launcher/slurm/score_array.sbatch ARGUMENT ...

With another size of array, too, nothing is done twice.

Other schedulers: start `megaslm VERB ARGUMENT ... --share N/COUNT` for N = 1 … COUNT, then with --finish once.
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    prepare | score) ;;
    *) usage >&2; exit 2 ;;
esac
if (($# < 3)); then usage >&2; exit 2; fi
if [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    echo "SLURM_ARRAY_TASK_ID is not set: submit launcher/slurm/$1_array.sbatch with sbatch --array=1-COUNT" >&2
    exit 2
fi

if [[ -n "${PARTS:-}" ]]; then
    part=$SLURM_ARRAY_TASK_ID
    count=$PARTS
else
    part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))
    count=$((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1))
    if ((count != ${SLURM_ARRAY_TASK_COUNT:-$count})); then
        echo "the array has gaps: to submit some of COUNT tasks again, add --export=ALL,PARTS=COUNT" >&2
        exit 2
    fi
fi

if [[ "$1" == score ]]; then exec launcher/slurm/ranks.sh "$@" --share "$part/$count"; fi
if [[ -x .venv/bin/python ]]; then PATH="$PWD/.venv/bin:$PATH"; fi
exec python -m megaslm "$@" --share "$part/$count"
