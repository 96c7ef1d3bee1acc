#!/usr/bin/env bash
# Prepares a dataset as the tasks of a Slurm array. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: sbatch --array=1-400 --cpus-per-task=8 launcher/prepare_array.sh RECIPE OUTPUT [ARGUMENT ...]

  job=$(sbatch --parsable --array=1-400 --cpus-per-task=8 launcher/prepare_array.sh data/web.yaml datasets/web)
  sbatch --dependency=afterok:"$job" --wrap ".venv/bin/megaslm prepare data/web.yaml datasets/web --finish"

Each task of the array runs `megaslm prepare RECIPE OUTPUT --part N/COUNT ...` on the cores that it was given. Submit it
from this project's folder. OUTPUT lies on a file system that all nodes share. A task that was killed is submitted again
(`--requeue` does so by itself) and does what is missing; with another size of array, too, nothing is done twice.

Other schedulers: start `megaslm prepare RECIPE OUTPUT --part N/COUNT` for N = 1 … COUNT, then with --finish once.
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
if (($# < 2)); then usage >&2; exit 2; fi
if [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    echo "SLURM_ARRAY_TASK_ID is not set: submit this script with sbatch --array=1-COUNT" >&2
    exit 2
fi

# Slurm runs a copy of this script, so that its own place says nothing.
if [[ -x .venv/bin/python ]]; then PATH="$PWD/.venv/bin:$PATH"; fi

part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))
count=$((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1))
exec python -m megaslm prepare "$@" --part "$part/$count"
