# Sourced by the scripts that start ranks: what they themselves say of a job, on standard error.
# shellcheck shell=bash

# COUNT and the noun, in the plural but for one.
counted() { if (($1 == 1)); then echo "1 $2"; else echo "$1 $2s"; fi; }

# The first line, from HOW and the words of the verb. Ranks import for many seconds before they say anything.
say_start() {
    printf 'launch: %s: megaslm' "$1" >&2
    shift
    printf ' %q' "$@" >&2
    echo >&2
}

# Refuses where the program is not on PATH, which begins with the project's .venv.
require_program() {
    if command -v "$1" >/dev/null; then return 0; fi
    echo "$1 is not installed on $(uname -n), and $project has no .venv; run make there, or activate the environment" >&2
    exit 2
}

# The last line of a job that ended with STATUS. Ranks that refuse (2) or stop (75) have said why, and stay the last.
say_end() {
    local status="$1" signal=""
    case "$status" in 0 | 2 | 75) return 0 ;; esac
    # A shell adds 128 to the number of the signal, DeepSpeed's launcher subtracts it from 256. 255 is a host that ssh lost.
    if ((status > 192 && status < 255)); then
        signal=$((256 - status))
    elif ((status > 128 && status <= 192)); then
        signal=$((status - 128))
    fi
    if [[ -n "$signal" ]] && signal="$(kill -l "$signal" 2>/dev/null)"; then
        echo "launch: ended with status $status: a process was ended by SIG$signal" >&2
    else
        echo "launch: ended with status $status; the first error above is the reason" >&2
    fi
}

# How the user calls a setting that the script reads as variable NAME: `megaslm launch` sets it from a key of the
# cluster's file, MEGASLM_CLUSTER.
setting() {
    case "${MEGASLM_CLUSTER:+$1}" in
        "") echo "$1" ;;
        EXPORT) echo environment ;;
        *) echo "${1,,}" ;;
    esac
}

# How the user gives the setting NAME the value VALUE.
to_set() {
    if [[ -n "${MEGASLM_CLUSTER:-}" ]]; then echo "$(setting "$1"): $2 in $MEGASLM_CLUSTER"; else echo "$1=$2"; fi
}
