#!/usr/bin/env bash
# What launcher/hostfile.sh does on each host of a job, through ssh.
#
#   on_host.sh check FOLDER PYTHON                     whether the job can be started from that folder
#   on_host.sh meeting PYTHON PORT PORT_NAME ADDRESS_NAME [ADDRESS]    prints the address to meet at, or says why not;
#                                                      the names are those of the user's settings
#   on_host.sh run PYTHON NODE_RANK ADDRESS PORT VERB ARGUMENT ...    the ranks of this host, one of MEGASLM_HOSTS
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
    local python="$1" port="$2" port_name="$3" address_name="$4" address="${5:-}"
    if [[ -z "$address" ]]; then read -r address _ < <(hostname -I) || true; fi
    if [[ -z "$address" ]]; then echo "this host has no address; set $address_name" >&2; return 1; fi
    "$python" -S -c "$listen" "$address" "$port" "$port_name" "$address_name" && echo "$address"
}

# Where the network translates addresses, the one to meet at is none of this host's own.
listen='
import errno, socket, sys
address, port, port_name, address_name = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
def assignment(name, value):
    # Lower case is a key of the cluster file.
    return f"`{name}={value}` before the command" if name.isupper() else f"`{name}: {value}` in the file of the cluster"
try:
    family, _, _, _, (found, *_) = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
except OSError as error:
    sys.exit(f"{address_name} = {address}: {error.strerror} on {socket.gethostname()}; set an address of this host")
for place in (found, ""):
    try:
        socket.create_server((place, port), family=family).close()
        break
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            taken = f"{port_name} = {port}: somebody listens there on {socket.gethostname()}, {address}"
            sys.exit(f"{taken}; set another, such as {assignment(port_name, port % 65535 + 1)}")
        if error.errno != errno.EADDRNOTAVAIL:
            sys.exit(f"{port_name} = {port}: {error.strerror} on {socket.gethostname()}, {address}; set another")
'

run() {
    local python="$1" node_rank="$2" address="$3" port="$4" host hosts world=""
    shift 4
    # As DeepSpeed's launcher of one host reads it: the slots of each host, in base64 for URLs. The program `deepspeed`
    # would import DeepSpeed only to start that launcher.
    IFS=, read -ra hosts <<<"$MEGASLM_HOSTS"
    for host in "${hosts[@]}"; do
        world+="${world:+, }\"${host%:*}\": [$(seq -s, 0 $((${host##*:} - 1)))]"
    done
    world="$(base64 --wrap 0 <<<"{$world}" | tr '+/' '-_')"
    exec "$python" -u -m deepspeed.launcher.launch --log_level critical --world_info "$world" --node_rank "$node_rank" \
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
