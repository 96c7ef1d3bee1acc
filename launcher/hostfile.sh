#!/usr/bin/env bash
# Starts a verb of MegaSLM on the hosts of a DeepSpeed hostfile. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: launcher/hostfile.sh HOSTFILE VERB [ARGUMENT ...]

  launcher/hostfile.sh hosts.txt train configs/rho-math-1b/slm.yaml

HOSTFILE names one host a line: `node-1 slots=8`. Every host needs this folder at the same path, with its .venv, and ssh
without a password; this host needs pdsh. Exits with the largest status of any host.

  MASTER_ADDR   the address at which the ranks meet; default: the first host's own
  MASTER_PORT   the port there; default 29500

Of the environment, only what starts with NCCL and PYTHON reaches the hosts; for more, write NAME=VALUE lines into the file
.deepspeed_env in this folder. With `ServerAliveInterval` in the ssh configuration, a lost host ends the job.
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
if (($# < 2)); then usage >&2; exit 2; fi

hostfile="$1"
shift
if [[ ! -f "$hostfile" ]]; then echo "$hostfile: no such hostfile" >&2; exit 2; fi

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# DeepSpeed writes all of this unquoted into a command line that a shell reads on every host.
require_plain() {
    local name="$1" value="$2" remedy="$3"
    if [[ ! "$value" =~ ^[A-Za-z0-9_./:=,@%+^-]+$ ]]; then
        printf '%s %q: may hold letters, digits and _./:=,@%%+^- only; %s\n' "$name" "$value" "$remedy" >&2
        exit 2
    fi
}
for argument in "$@"; do require_plain argument "$argument" "put such a value into the YAML"; done
for folder in "$PWD" "$project"; do require_plain folder "$folder" "move it to another path"; done
for variable in $(compgen -e); do
    case "$variable" in
        MASTER_ADDR | MASTER_PORT | NCCL* | PYTHON* | MLFLOW* | MV2* | UCX*)
            value="${!variable}"
            if [[ -n "$value" ]]; then require_plain "$variable" "$value" "set it otherwise, or unset it"; fi ;;
    esac
done

if [[ -x "$project/.venv/bin/deepspeed" ]]; then PATH="$project/.venv/bin:$PATH"; fi

exec deepspeed --quiet --hostfile "$hostfile" --force_multi ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} \
    --master_port "${MASTER_PORT:-29500}" --no_local_rank --module megaslm "$@"
