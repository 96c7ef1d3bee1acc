#!/usr/bin/env bash
# Does one part of a verb's work, as a pod of an Indexed Job. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: launcher/k8s/part.sh COUNT prepare|score ARGUMENT ...

Runs `megaslm VERB ARGUMENT ... --share N/COUNT`: `score` in RANKS processes, through launcher/local.sh, `prepare` in one.

  JOB_COMPLETION_INDEX  N - 1, as Kubernetes numbers the pods of a Job
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
if (($# < 3)) || [[ ! "$1" =~ ^[1-9][0-9]{0,8}$ ]] || [[ "$2" != prepare && "$2" != score ]]; then
    usage >&2
    exit 2
fi
if [[ ! "${JOB_COMPLETION_INDEX:-}" =~ ^[0-9]{1,8}$ ]]; then
    printf 'JOB_COMPLETION_INDEX = %q: must be a number from 0 on; an Indexed Job sets it\n' \
        "${JOB_COMPLETION_INDEX:-}" >&2
    exit 2
fi

count="$1"
shift
part="$((10#$JOB_COMPLETION_INDEX + 1))/$count"
if [[ "$1" == score ]]; then
    exec "$(dirname "${BASH_SOURCE[0]}")/../local.sh" "$@" --share "$part"
fi
exec python -m megaslm "$@" --share "$part"
