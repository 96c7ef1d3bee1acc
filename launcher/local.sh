#!/usr/bin/env bash
# Starts a verb of MegaSLM on this host, one process per GPU. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: launcher/local.sh VERB [ARGUMENT ...]

  launcher/local.sh train configs/demo/slm.yaml --set train.lr=1e-3
  launcher/local.sh score --reference models/reference datasets/tokens datasets/scored

Runs `python -m megaslm VERB ...` once per rank, through DeepSpeed's launcher, and exits with the status of the job.

  RANKS                 number of ranks; default: every GPU that CUDA_VISIBLE_DEVICES leaves, or 2 without a GPU
  CUDA_VISIBLE_DEVICES  the GPUs to use, by number; the first RANKS of them
  MASTER_PORT           the port at which the ranks meet; default: a free one
  OMP_NUM_THREADS       threads a rank; default without a GPU: the cores, shared out

SIGTERM, SIGHUP or SIGUSR1 reaches every rank as SIGTERM, so that the job can save and stop by itself (status 75). One that
comes more than ten seconds later ends it at once. Ctrl-C does the same, and a second Ctrl-C ends the job at once (status
130).
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ -x "$project/.venv/bin/deepspeed" ]]; then PATH="$project/.venv/bin:$PATH"; fi

source "$project/launcher/saying.sh"
port="${MASTER_PORT:-}"
if [[ ! "${RANKS:-1}" =~ ^[1-9][0-9]*$ ]]; then
    printf '%s = %q: must be a whole number above 0\n' "$(setting RANKS)" "$RANKS" >&2
    exit 2
fi
if [[ -n "$port" ]] && { [[ ! "$port" =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); }; then
    printf '%s = %q: must be a number from 1 to 65535\n' "$(setting MASTER_PORT)" "$port" >&2
    exit 2
fi

source "$project/launcher/stopping.sh"
# Until there are ranks nothing is lost.
check=""
trap 'if [[ -n "$check" ]]; then kill -KILL "$check" 2>/dev/null || true; fi
    echo "launch: told to stop before the ranks were started; nothing is lost" >&2; exit 75' TERM INT HUP USR1
source "$project/launcher/devices.sh" "${RANKS:-}"
if [[ -n "$gpus" ]]; then
    devices="$(cut -d, -f "1-$ranks" <<<"$gpus")"
else
    devices="$(seq -s, 0 $((ranks - 1)))"
fi
# As DeepSpeed's launcher of one host reads it: the ranks' devices by host, in base64 for URLs.
world="$(printf '{"localhost": [%s]}' "$devices" | base64 --wrap 0 | tr '+/' '-_')"

require_program deepspeed
say_start "$(counted "$ranks" rank) on this host${gpus:+, GPUs $gpus}" "$@"
can_meet_at() {
    "$project/launcher/on_host.sh" meeting python "$1" "$(setting MASTER_PORT)" "$(setting MASTER_ADDR)" 127.0.0.1 >/dev/null
}
if [[ -z "$port" ]]; then
    # It is free for half a minute before a rank listens on it. Jobs that start meanwhile have another process number, and
    # outgoing connections take ports from 32768 on.
    port=$((20000 + $$ % 10000))
    for _ in {1..20}; do
        if can_meet_at "$port" 2>/dev/null; then break; fi
        port=$((20000 + (port + 101) % 10000))
    done
fi
can_meet_at "$port" || exit 2
# What the first rank would refuse, DeepSpeed's launcher and the ranks would take half a minute to tell. The check may wait
# for another job, and says so. Without LOCAL_WORLD_SIZE it would leave the inputs to ranks that may be on other hosts.
if [[ "$1" == train ]]; then
    refused=0
    RANK=0 LOCAL_RANK=0 WORLD_SIZE="$ranks" LOCAL_WORLD_SIZE="$ranks" MASTER_ADDR=127.0.0.1 MASTER_PORT="$port" \
        python -m megaslm "$@" --check >/dev/null &
    check=$!
    # In the background, so that a signal is answered at once.
    wait "$check" || refused=$?
    check=""
    if ((refused == 2)); then exit 2; fi
fi

# DeepSpeed's launcher of one host. The program `deepspeed` would import DeepSpeed only to start it.
# setsid: signals from the terminal come to this script alone, which hands them on in order.
# critical: its only error is the status of a rank, and the last line should be the rank's own. This script says the rest.
setsid python -u -m deepspeed.launcher.launch --log_level critical --world_info "$world" \
    --master_addr 127.0.0.1 --master_port "$port" --no_local_rank --module megaslm "$@" &
job=$!

# The launcher answers SIGTERM by killing its ranks, so the ranks themselves are told; it then waits for them. After Ctrl-C
# they get SIGINT first, and name it. SIGTERM ends those that do not listen yet.
tell() {
    local rank ranks
    readarray -t ranks < <(ranks_here)
    if ((${#ranks[@]} == 0)); then
        kill -TERM -- "-$job" 2>/dev/null || true
        return 0
    fi
    # One rank after the other, so that no time passes between its two signals.
    for rank in "${ranks[@]}"; do
        if [[ "$1" == INT ]]; then kill -INT -- "$rank" 2>/dev/null || true; fi
        kill -TERM -- "$rank" 2>/dev/null || true
    done
}
end_at_once() {
    local rank
    if [[ "${1:-}" == INT ]]; then
        # A rank that can still answer ends in order.
        for rank in $(ranks_here); do kill -INT "$rank" 2>/dev/null || true; done
        sleep 0.5
    fi
    kill -KILL -- "-$job" 2>/dev/null || true
}
ranks_here() { pgrep -P "$job" -f -- '-m megaslm' || true; }
answer_signals

status=0
wait_for "$job" || status=$?
leave_if_pressed_again "$@"
# Before there are ranks, or while they do not listen yet, nothing is lost, and nobody but this script can say that the job
# was told to stop. 241 is DeepSpeed's word for a rank that SIGTERM has ended.
if [[ -n "$told_at" ]] && ((status == 128 + 15 || status == 256 - 15)); then
    echo "launch: told to stop${pressed_at:+ by Ctrl-C} before the ranks listened; nothing is lost" >&2
    status=75
fi
say_end "$status"
exit "$status"
