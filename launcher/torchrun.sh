#!/usr/bin/env bash
# Starts a verb of MegaSLM by torchrun, which starts the ranks again when one has failed. See --help.
set -euo pipefail
# Until there is a job nothing is lost.
trap 'exit 75' TERM INT HUP USR1

usage() {
    cat <<'HELP'
usage: launcher/torchrun.sh VERB [ARGUMENT ...]

  launcher/torchrun.sh train configs/rho-math-1b/slm.yaml --resume

and, on each of two hosts:

  NODES=2 RENDEZVOUS=node-1:29400 launcher/torchrun.sh train configs/rho-math-1b/slm.yaml --resume

Runs `python -m megaslm VERB ...` once per rank. When a rank has failed, those of all hosts are started again, and with
--resume a training continues from its newest checkpoint. Exits with the status of the job.

  NODES                 number of hosts, on each of which this script is started; default 1
  RANKS_PER_NODE        ranks on each host; default: every GPU that CUDA_VISIBLE_DEVICES leaves, or 2 without a GPU
  RENDEZVOUS            for several hosts, HOST:PORT: one of them, and the port there at which all meet
  MAX_RESTARTS          how often a host starts its ranks again after a failure; default 20
  CUDA_VISIBLE_DEVICES  the GPUs to use, by number; the first RANKS_PER_NODE of them
  OMP_NUM_THREADS       threads a rank; default without a GPU: the cores, shared out

A host knows itself by the address from which it reaches RENDEZVOUS. Its name has ten minutes to be found, and the hosts
ten to come.

SIGTERM, SIGINT, SIGHUP or SIGUSR1 on one host reaches its ranks as SIGTERM, so that the job can save and stop by itself
on all hosts (status 75). One that comes more than ten seconds later ends it at once, and so does a second Ctrl-C
(status 130).
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
launcher="$project/launcher"
if [[ -x "$project/.venv/bin/torchrun" ]]; then PATH="$project/.venv/bin:$PATH"; fi
source "$launcher/saying.sh"

refuse() {
    printf '%s = %q: must be %s\n' "$(setting "$1")" "$2" "$3" >&2
    exit 2
}
nodes="${NODES:-1}"
restarts="${MAX_RESTARTS:-20}"
rendezvous="${RENDEZVOUS:-}"
[[ "$nodes" =~ ^[1-9][0-9]{0,5}$ ]] || refuse NODES "$nodes" "a whole number above 0"
[[ "$restarts" =~ ^(0|[1-9][0-9]{0,5})$ ]] || refuse MAX_RESTARTS "$restarts" "a whole number"
[[ "${RANKS_PER_NODE:-1}" =~ ^[1-9][0-9]{0,5}$ ]] || refuse RANKS_PER_NODE "$RANKS_PER_NODE" "a whole number above 0"
if ((nodes > 1)) || [[ -n "$rendezvous" ]]; then
    [[ "$rendezvous" =~ ^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?:[1-9][0-9]{0,4}$ ]] ||
        refuse RENDEZVOUS "$rendezvous" "HOST:PORT, where $nodes hosts meet"
    ((${rendezvous##*:} <= 65535)) || refuse RENDEZVOUS "$rendezvous" "HOST:PORT, the port 65535 at most"
fi

source "$launcher/stopping.sh"
source "$launcher/devices.sh" "${RANKS_PER_NODE:-}"

place="$(counted "$ranks" rank) on this host${gpus:+, GPUs $gpus}"
if ((nodes > 1)); then place+=", one of $nodes that meet at $rendezvous"; fi
require_program torchrun
say_start "$place; up to $(counted "$restarts" restart)" "$@"

# The address of this host towards RENDEZVOUS, and that of RENDEZVOUS. Nothing is sent.
addresses() {
    python -S -c '
import socket, sys
host, port = sys.argv[1:]
family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
with socket.socket(family, socket.SOCK_DGRAM) as probe:
    probe.connect(address)
    print(probe.getsockname()[0], address[0])' "${rendezvous%:*}" "${rendezvous##*:}" 2>/dev/null
}

# For a name to be found, and for the other hosts to come.
longest_wait_seconds=600
if ((nodes == 1)); then
    meeting=(--standalone)
else
    # A cluster may give a host its name a while after it has started it.
    until read -r here there < <(addresses); do
        if ((SECONDS > longest_wait_seconds)); then
            echo "$(setting RENDEZVOUS) = $rendezvous: this host cannot resolve the name after $longest_wait_seconds s" >&2
            exit 1
        fi
        sleep 2
    done
    settings="read_timeout=$longest_wait_seconds"
    if [[ "$there" == 127.* && "$rendezvous" != 127.* && "$rendezvous" != localhost:* ]]; then
        # The host's own name, which on Debian is a loopback address, of no use to the others.
        here="$(hostname -I | cut -d ' ' -f 1)"
        settings+=",is_host=true"
    elif [[ "$here" == "$there" && "$here" != 127.* ]]; then
        # By its name alone a host may not know that it is meant.
        settings+=",is_host=true"
    fi
    # Jobs that meet at one place one after the other do not let each other's hosts in.
    meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$rendezvous" --local-addr "$here"
        --rdzv-conf "$settings" --rdzv-id "$(sha256sum <<<"$*" | cut -c 1-16)")
    # torchrun's own store holds the addresses of the attempts before: https://github.com/pytorch/pytorch/issues/135712
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

scratch="$(mktemp -d)"
keep_from_cleaners "$scratch"
trap 'rm -rf "$scratch"' EXIT
# With which status each rank of this host has ended; torchrun's own says only whether one has failed.
statuses="$scratch/statuses"
mkdir "$statuses"

# torchrun puts numbers in place of ${local_rank}, and a dollar in place of two.
rank=("$launcher/torchrun_rank.sh" "${statuses//\$/\$\$}" "${@//\$/\$\$}")
# setsid: signals from the terminal come to this script alone, which hands them on in order.
setsid torchrun "${meeting[@]}" --nproc-per-node "$ranks" --max-restarts "$restarts" --monitor-interval 1 \
    --shutdown-timeout 300 --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --log-dir "$scratch/logs" \
    --no-python "${rank[@]}" &
job=$!

was_before_ranks=no

# The ranks themselves are told: torchrun, told to stop, would leave the other hosts waiting for this one.
tell() {
    say_pressed "$1"
    if ! signal_ranks TERM; then end_torchrun; fi
}
end_at_once() {
    # Else it would start them again.
    kill -TERM "$job" 2>/dev/null || true
    if ! signal_ranks KILL; then end_torchrun; fi
}
# Fails where there are no ranks.
signal_ranks() {
    local process signalled=no
    # Ranks that start after this end at once.
    : >"$statuses/.told"
    for process in $(pgrep -P "$job"); do
        if kill -"$1" -- "-$process" 2>/dev/null; then signalled=yes; fi
    done
    [[ "$signalled" == yes ]]
}
end_torchrun() {
    was_before_ranks=yes
    kill -TERM "$job" 2>/dev/null || true
}
answer_signals

status=0
wait_for "$job" || status=$?

agreed="$(sort -u "$statuses"/* 2>/dev/null || true)"
if [[ "$agreed" == 75 || "$agreed" == 2 ]]; then
    status="$agreed"
elif [[ "$was_before_ranks" == yes ]] && ((status != 0)); then
    # Nothing is lost, and the same command starts again.
    status=75
fi
leave_if_pressed_again "$@"
say_end "$status"
exit "$status"
