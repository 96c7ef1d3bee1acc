#!/usr/bin/env bash
# Starts a verb of MegaSLM on the hosts of a DeepSpeed hostfile. See --help.
set -euo pipefail
# Until there is a job nothing is lost.
trap 'wait; exit 75' TERM INT HUP USR1

usage() {
    cat <<'HELP'
usage: launcher/hostfile.sh [--check] HOSTFILE VERB [ARGUMENT ...]

  launcher/hostfile.sh hosts.txt train configs/rho-math-1b/slm.yaml --resume
  EXPORT=HF_HOME,NCCL_DEBUG launcher/hostfile.sh hosts.txt score --reference models/reference datasets/web datasets/scored

HOSTFILE names one host a line: `node-1 slots=8`. Every host needs this project and the current folder at the same paths
as here, the project with its .venv, and lets this host in by ssh without a password; users, ports and keys go into
~/.ssh/config. All are asked before anything is started, and those that are not fit are named; --check stops there. Runs `python -m megaslm
VERB ...` once per slot, through DeepSpeed's launcher, and exits with the largest status of any host.

  REMOTE_SHELL  pdsh: DeepSpeed's own way, for which pdsh is installed here (the default)
                ssh: one ssh per host, and DeepSpeed's launcher of one host there
  MASTER_ADDR   the address at which the ranks meet; default: the first that `hostname -I` tells on the first host
  MASTER_PORT   the port there; default 29500
  EXPORT        the names of variables that the ranks get from here, with commas between; no other one reaches them

SIGTERM, SIGINT, SIGHUP or SIGUSR1 reaches every rank as SIGTERM, so that the job can save and stop by itself (status
75). One that comes more than ten seconds later ends it at once, and so does a second Ctrl-C (130). A host that does not
answer for a minute is given up, and where the ranks of one have failed, those of the others are ended after a minute if
they have not ended by themselves. However this script ends, nothing of the job stays on a host that ssh still reaches:
what sees to that has a process group of its own, and outlives a SIGKILL of this one's.

Each rank finds in MEGASLM_HOSTS which hosts the job has, with their slots, in the order of the ranks: node-1:8,node-2:8
HELP
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then usage; exit 0; fi
checks_only=no seconds_to_answer=10
if [[ "${1:-}" == --check ]]; then
    checks_only=yes seconds_to_answer=2
    shift
fi
if (($# < 2)); then usage >&2; exit 2; fi

hostfile="$1"
shift
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ -x "$project/.venv/bin/python" ]]; then PATH="$project/.venv/bin:$PATH"; fi
python="$(command -v python || true)"
on_host="$project/launcher/on_host.sh"
port="${MASTER_PORT:-29500}"
remote_shell="${REMOTE_SHELL:-pdsh}"
# All processes of the job have it in their environment, and no other process has.
job="$(date +%s)-$$-$RANDOM"

source "$project/launcher/saying.sh"
# `hosts`, `exported` and `unfit`, or a refusal.
source "$project/launcher/hostfile_settings.sh"
source "$project/launcher/stopping.sh"

# DeepSpeed would hand these on by itself.
for variable in $(compgen -e); do
    case "$variable" in NCCL* | PYTHON* | MLFLOW* | MV2* | UCX*) unset "$variable" ;; esac
done

# Nobody is asked for a password, and a host that does not answer is given up after a minute, as runs do it by default.
ssh_options=(-o BatchMode=yes -o ConnectTimeout="$seconds_to_answer" -o ServerAliveInterval=15 -o ServerAliveCountMax=4)

named() { sed -u "s/^/$1: /"; }

# DeepSpeed's launcher on the hosts has no --quiet under pdsh. Its information goes, and so does its report that a rank
# refused (2) or stopped (75), which the rank has told itself.
without_launchers_lines() {
    trap '' TERM INT HUP USR1
    sed -uE -e '/^[^ ]+: \[[^]]+\] \[INFO\] \[launch\.py:/d' \
        -e '/^[^ ]+: \[[^]]+\] \[ERROR\] \[launch\.py:.* exits with return code = (2|75)$/d'
}

# Runs a command on every host; `failed` counts those on which it failed, and `unreached` those of them where ssh did.
on_every_host() {
    local host process processes=() status
    for host in "${hosts[@]}"; do
        ssh -n "${ssh_options[@]}" "$host" "$@" 2>&1 | named "$host" >&2 &
        processes+=("$!")
    done
    failed=0 unreached=0
    for process in "${processes[@]}"; do
        status=0
        wait "$process" || status=$?
        if ((status > 0)); then ((++failed)); fi
        if ((status == 255)); then ((++unreached)); fi
    done
}

start_by_pdsh() {
    export PDSH_SSH_ARGS_APPEND="${ssh_options[*]} ${PDSH_SSH_ARGS_APPEND:-}" DS_ENV_FILE="$scratch/environment"
    export PATH="$project/launcher/pdsh:$PATH" PDSH_SUCCEEDED="$scratch/pdsh-succeeded"
    # It puts values with any but plain characters between double quotes; for pdsh itself a percent sign begins a name.
    printf '%s\n' "${exported[@]}" | sed 's/[\\"$`]/\\&/g; s/%/%%/g' >"$DS_ENV_FILE"
    # setsid: signals from the terminal come to this script alone.
    exec setsid "$python" -m deepspeed.launcher.runner --quiet --hostfile "$hostfile" --force_multi --no_ssh_check \
        --master_addr "$address" --master_port "$port" --no_local_rank --module megaslm "${@//%/%%}" \
        > >(without_launchers_lines) 2> >(note_failures >&2)
}

# pdsh tells of a host that has failed, and continues waiting for the others. The statuses 2 and 75 are the ranks' own.
note_failures() {
    local ended="^pdsh@.*: ssh exited with exit code "
    trap '' TERM INT HUP USR1
    sed -u -e "/${ended}75\$/d" -e "/$ended/w $scratch/failed" -e "/${ended}2\$/d"
}

start_by_ssh() {
    local rank process processes=() status=0 one
    trap '' TERM INT HUP USR1
    for rank in "${!hosts[@]}"; do
        run_on_host "$rank" "$@" &
        processes+=("$!")
    done
    for process in "${processes[@]}"; do
        one=0
        wait "$process" || one=$?
        if ((one > status)); then status=$one; fi
    done
    exit "$status"
}

run_on_host() {
    local rank="$1" host="${hosts[$1]}" status=0
    shift
    ssh -n "${ssh_options[@]}" "$host" "cd $PWD && exec env $(printf '%q ' "${exported[@]}")" \
        "$on_host" run "$python" "$rank" "$address" "$port" "$@" \
        > >(named "$host") 2> >(named "$host" >&2) || status=$?
    if ((status > 0 && status != 75)); then echo "$host" >>"$scratch/failed"; fi
    say_end "$status" 2> >(named "$host" >&2)
    exit "$status"
}

seconds_after_a_failure=60
# Ranks that have met end by themselves when one fails. Those that wait for it to come are ended here.
end_after_a_failure() {
    local half_seconds=0
    trap '' TERM INT HUP USR1
    while [[ -d "$scratch" ]] && ((half_seconds < 2 * seconds_after_a_failure)); do
        if [[ -s "$scratch/failed" ]]; then ((++half_seconds)); fi
        sleep 0.5
    done
    if [[ -d "$scratch" ]]; then
        echo "a host failed $seconds_after_a_failure s ago; what is left of the job is ended" >&2
        on_every_host "$on_host" kill "$job"
    fi
}

tell() { say_pressed "$1"; tell_ranks & }
end_at_once() { on_every_host "$on_host" kill "$job" & }

# Where there are none on any host nothing is lost.
tell_ranks() {
    trap '' TERM INT HUP USR1
    on_every_host "$on_host" tell "$job"
    if ((unreached > 0)); then
        echo "$unreached of the ${#hosts[@]} hosts were not told to stop: ssh does not get there any more" >&2
    elif ((failed == ${#hosts[@]})); then
        touch "$scratch/told-before-ranks"
        on_every_host "$on_host" kill "$job"
    fi
}

if [[ "$checks_only" == no ]]; then say_start "$(counted "$ranks" rank) on $(counted "${#hosts[@]}" host) of $hostfile by $remote_shell" "$@"; fi
# In the words in which DeepSpeed tells the ranks their variables, which not every login shell takes.
on_every_host "export MEGASLM_JOB=$job;" "$on_host" check "$PWD" "$python"
if ((failed > 0)); then refuse "$failed of the ${#hosts[@]} hosts of $hostfile are not fit; nothing was started"; fi
first="${hosts[0]}"
address="$(
    ssh -n "${ssh_options[@]}" "$first" "$on_host" meeting "$python" "$port" \
        "$(setting MASTER_PORT)" "$(setting MASTER_ADDR)" "${MASTER_ADDR:-}" 2> >(named "$first" >&2)
)" || refuse "the ranks cannot meet on $first; nothing was started"
# What the shell there prints by itself, as .bashrc may tell it to, comes before.
address="${address##*$'\n'}"
if [[ ! "$address" =~ $name_or_address ]]; then
    refuse "$first: printed $(printf %q "$address") where the address to meet at is expected; look what" \
        "\`ssh $first true\` prints, and silence it; nothing was started"
fi

if [[ "$checks_only" == yes ]]; then exit "$unfit"; fi

# From here on it is not enough to end.
scratch="$(mktemp -d)"
answer_signals
keep_from_cleaners "$scratch"
mkfifo "$scratch/alive"
# Reads until this script has ended, be it by SIGKILL, as the other end of the pipe is closed then.
remove_what_is_left() {
    # In the background of a terminal, a process that writes there may be stopped.
    trap '' TERM INT HUP USR1 TTOU
    cat >/dev/null
    on_every_host "$on_host" kill "$job"
    rm -rf "$scratch"
    if ((failed > 0)); then echo "$failed hosts do not tell whether processes with MEGASLM_JOB=$job are left" >&2; fi
}
# Opened both ways, so that neither end waits for the other one to come.
exec {alive}<>"$scratch/alive" {end}<"$scratch/alive"
# A process group of its own.
set -m
remove_what_is_left <&"$end" {alive}>&- {end}<&- &
remover=$!
set +m
exec {end}<&-

end_after_a_failure {alive}>&- &
ender=$!

case "$remote_shell" in
    pdsh) start_by_pdsh "$@" {alive}>&- & ;;
    ssh) start_by_ssh "$@" {alive}>&- & ;;
esac
starter=$!
status=0
wait_for "$starter" || status=$?
# DeepSpeed's launcher ends with 0 where a signal has ended its pdsh.
if [[ "$remote_shell" == pdsh && ! -e "$scratch/pdsh-succeeded" ]] && ((status == 0)); then
    echo "pdsh was ended on this host by a signal; what is left of the job is ended" >&2
    status=1
fi
if [[ -e "$scratch/told-before-ranks" ]] && ((status != 0)); then status=75; fi
exec {alive}>&-
wait_for "$remover" || true
wait_for "$ender" || true
leave_if_pressed_again "$@"
if [[ "$remote_shell" == pdsh ]]; then say_end "$status"; fi
exit "$status"
