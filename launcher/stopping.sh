# Sourced by local.sh, torchrun.sh and hostfile.sh: how a script answers signals, waits for the job it has started, and keeps what
# it has written meanwhile.
#
# The script traps them with `answer_signals`, and defines what it does then: `tell` lets the job save and stop by itself,
# and `end_at_once` does not. Both get the name of the signal.
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
# A program that wraps this script may pass on the Ctrl-C that the terminal has sent to both.
one_press_microseconds=500000
pressed_at="" pressed_again=""

answer_signals() {
    trap stop TERM HUP USR1
    trap 'stop INT' INT
}

stop() {
    local now="${EPOCHREALTIME/[.,]/}"
    if [[ "${1:-}" == INT && -n "$pressed_at" ]] && ((now - pressed_at > one_press_microseconds)); then
        pressed_again=yes
        end_at_once INT
        return 0
    fi
    if [[ "${1:-}" == INT ]]; then pressed_at="${pressed_at:-$now}"; fi
    if [[ -z "$told_at" ]]; then
        told_at="$SECONDS"
        tell "${1:-TERM}"
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

# The ranks get SIGTERM, and name that.
say_pressed() {
    if [[ "$1" == INT ]]; then
        echo "launch: Ctrl-C: tells the ranks by SIGTERM to save and end; Ctrl-C again ends them at once" >&2
    fi
}

# After the job of VERB and its arguments, whose death bash tells of. A progress bar of a rank has hidden the cursor.
leave_if_pressed_again() {
    local again="the same command continues from there"
    if [[ -z "$pressed_again" ]]; then return 0; fi
    if [[ -t 2 ]]; then printf '\n\e[?25h' >&2; fi
    if [[ "$1" == train ]]; then
        case " $* " in
            *" --smoke"*) again="the same command makes the smoke test again" ;;
            *" --resume "*) ;;
            *) again="add --resume to continue from there" ;;
        esac
    fi
    echo "launch: ended by the second Ctrl-C; what was saved before is kept: $again" >&2
    exit 130
}

# Waits until a process of this script has ended, and gives its status. Bash would tell of one that was killed.
wait_for() {
    # `wait` returns early, with more than 128, when a signal was handled.
    while kill -0 "$1" 2>/dev/null; do wait "$1" 2>/dev/null || true; done
    wait "$1" 2>/dev/null
}
