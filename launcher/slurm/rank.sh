#!/usr/bin/env bash
# One rank of a Slurm job: says in torch's words what Slurm says in its own. `srun` starts it, told so by ranks.sh.
set -euo pipefail
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID"
exec python -m megaslm "$@"
