# Sourced by local.sh, torchrun.sh and hostfile.sh: how a script answers signals, waits for the job it has started, and keeps what
# it has written meanwhile.
#
# The script traps them with `stop`, and defines what it does then: `tell` lets the job save and stop by itself, and
# `end_at_once` does not.
# shellcheck shell=bash

for program in flock pgrep pkill setsid; do
    if ! command -v "$program" >/dev/null; then
        echo "$program is not installed on $(uname -n); install procps and util-linux" >&2
        exit 2
    fi
done

# A scheduler may tell both this script and one that hands the signal on to it: what follows at once is the same
# telling.
one_telling_seconds=10
told_at=""

stop() {
    if [[ -z "$told_at" ]]; then
        told_at="$SECONDS"
        tell
    elif ((SECONDS - told_at > one_telling_seconds)); then
        told_at="$SECONDS"
        end_at_once
    fi
    # Without a number it would be the status of the `wait` that the signal cut short.
    return 0
}

# A folder that is locked is left alone by systemd-tmpfiles, which removes what has been in /tmp for ten days.
keep_from_cleaners() {
    local folder
    exec {folder}<"$1"
    # Where the file system has no locks nobody goes by them.
    flock --shared "$folder" 2>/dev/null || true
}

# Waits until a process of this script has ended, and gives its status.
wait_for() {
    # `wait` returns early, with more than 128, when a signal was handled.
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    wait "$1"
}
