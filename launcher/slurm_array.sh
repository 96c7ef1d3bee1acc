#!/usr/bin/env bash
# Prepares or scores a dataset as the tasks of a Slurm array. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: sbatch --array=1-400 [SBATCH OPTION ...] launcher/slurm_array.sh prepare|score ARGUMENT ...

  sbatch --array=1-400 --cpus-per-task=8 launcher/slurm_array.sh prepare data/web.yaml datasets/web
  sbatch --array=1-64 --gres=gpu:1 launcher/slurm_array.sh score --reference models/reference datasets/web datasets/scored

and, when all tasks are done, to make a dataset of what they left:

  sbatch --dependency=afterok:JOB --wrap ".venv/bin/megaslm prepare data/web.yaml datasets/web --finish"

Each task of the array runs `megaslm VERB ARGUMENT ... --part N/COUNT` on the cores and GPUs that it was given: `score` in
one process a GPU, through launcher/local.sh. Submit it from this project's folder. The output lies on a file system that
all nodes share. A task that was killed is submitted again (`--requeue` does so by itself) and does what is missing:

  sbatch --array=3,17,40 --export=ALL,PARTS=64 --gres=gpu:1 launcher/slurm_array.sh score ...

With another size of array, too, nothing is done twice. Where no GPU is, `score ... --finish` takes the arithmetic from the
tasks that were run.

Other schedulers: start `megaslm VERB ARGUMENT ... --part N/COUNT` for N = 1 … COUNT, then with --finish once.
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    prepare | score) ;;
    *) usage >&2; exit 2 ;;
esac
if (($# < 3)); then usage >&2; exit 2; fi
if [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    echo "SLURM_ARRAY_TASK_ID is not set: submit this script with sbatch --array=1-COUNT" >&2
    exit 2
fi

# Slurm runs a copy of this script, so that its own place says nothing.
if [[ -x .venv/bin/python ]]; then PATH="$PWD/.venv/bin:$PATH"; fi

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
if [[ "$1" == score && "${CUDA_VISIBLE_DEVICES:-}" == *,* ]]; then
    # Several tasks may run on one node, each with its own ranks to bring together.
    export MASTER_PORT="${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-SLURM_ARRAY_TASK_ID} % 10000))}"
    exec launcher/local.sh "$@" --part "$part/$count"
fi
exec python -m megaslm "$@" --part "$part/$count"
