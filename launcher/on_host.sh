#!/usr/bin/env bash
# What launcher/hostfile.sh does on each host of a job, through ssh.
#
#   on_host.sh check FOLDER PYTHON                     whether the job can be started from that folder
#   on_host.sh meeting PYTHON PORT [ADDRESS]           prints the address to meet at; fails where the port is taken
#   on_host.sh run PYTHON NODE_RANK ADDRESS PORT VERB ARGUMENT ...    the ranks of this host; the hostfile is the input
#   on_host.sh tell JOB                                tells the ranks to stop
#   on_host.sh kill JOB                                ends all processes of the job
set -euo pipefail

check() {
    local folder="$1" python="$2"
    if ! cd "$folder" 2>/dev/null; then echo "there is no folder $folder" >&2; return 1; fi
    if [[ ! -x "$python" ]]; then echo "there is no $python" >&2; return 1; fi
    if [[ -z "${MEGASLM_JOB:-}" ]]; then
        echo "the login shell does not take \`export NAME=VALUE\`, by which DeepSpeed tells ranks their variables; make it" \
            "sh, bash or zsh" >&2
        return 1
    fi
}

meeting() {
    local python="$1" port="$2" address="${3:-}"
    if [[ -z "$address" ]]; then read -r address _ < <(hostname -I) || true; fi
    if [[ -z "$address" ]]; then echo "this host has no address; set MASTER_ADDR" >&2; return 1; fi
    "$python" -S -c "$listen" "$address" "$port" && echo "$address"
}

# Where the network translates addresses, the one to meet at is none of this host's own.
listen='
import errno, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
try:
    family, _, _, _, (found, *_) = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
except OSError as error:
    sys.exit(f"MASTER_ADDR = {address}: {error.strerror} on {socket.gethostname()}; set an address of this host")
for place in (found, ""):
    try:
        socket.create_server((place, port), family=family).close()
        break
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"MASTER_PORT = {port}: somebody listens there on {socket.gethostname()}, {address}; set another")
        if error.errno != errno.EADDRNOTAVAIL:
            sys.exit(f"MASTER_PORT = {port}: {error.strerror} on {socket.gethostname()}, {address}; set another")
'

run() {
    local python="$1" node_rank="$2" address="$3" port="$4" hostfile
    shift 4
    hostfile="$(mktemp)"
    cat >"$hostfile"
    exec 3<"$hostfile"
    # It lives on as long as it is open, and leaves nothing behind.
    rm "$hostfile"
    exec "$python" -m deepspeed.launcher.runner --quiet --hostfile /dev/fd/3 --no_ssh --node_rank "$node_rank" \
        --master_addr "$address" --master_port "$port" --no_local_rank --module megaslm "$@"
}

processes_of() {
    grep -slzxF "MEGASLM_JOB=$1" /proc/[0-9]*/environ | tr -cd '0-9\n' || true
}

# Loaders and the like inherit the environment of the rank that is their parent.
is_rank() {
    local parent
    parent="$(sed -n 's/^PPid:\t//p' "/proc/$1/status" 2>/dev/null)"
    grep -sqz ^RANK= "/proc/$1/environ" && ! grep -sqz ^RANK= "/proc/$parent/environ"
}

# Whether it has said what is to happen on SIGTERM; until then it would be killed by it.
listens() {
    local caught
    caught="$(sed -n 's/^SigCgt:\t//p' "/proc/$1/status" 2>/dev/null)"
    (((16#${caught:-0} >> 14) & 1))
}

tell() {
    local process told=0 give_up=$((SECONDS + 20))
    while ((told == 0 && SECONDS < give_up)); do
        for process in $(processes_of "$1"); do
            if is_rank "$process" && listens "$process" && kill -TERM "$process"; then ((++told)); fi
        done
        if ((told == 0)); then sleep 0.3; fi
    done
    ((told > 0))
}

end() {
    local processes give_up=$((SECONDS + 10))
    while mapfile -t processes < <(processes_of "$1") && ((${#processes[@]} > 0)); do
        if ((SECONDS > give_up)); then echo "cannot be ended: processes ${processes[*]}" >&2; return 1; fi
        kill -KILL "${processes[@]}" 2>/dev/null || true
        sleep 0.1
    done
}

case "${1:-}" in
    check | meeting | run | tell) "$@" ;;
    kill) end "$2" ;;
    *) sed -n '2,/^set /s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
