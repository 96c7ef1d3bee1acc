#!/usr/bin/env bash
# One rank under torchrun, as launcher/torchrun.sh starts it: torchrun_rank.sh STATUSES VERB [ARGUMENT ...]
#
# torchrun starts the ranks again after any status but 0. That all ranks of a host were told to stop (75), or found a
# mistake in what they were given (2), is no failure: then they end with 0, and their status is in a file of the folder
# STATUSES.
set -uo pipefail

statuses="$1"
shift

note() {
    echo "$1" >"$statuses/.$LOCAL_RANK"
    mv "$statuses/.$LOCAL_RANK" "$statuses/$LOCAL_RANK"
}

told=no
trap 'told=yes' TERM INT USR1 HUP QUIT

note running
if [[ -e "$statuses/.told" ]]; then
    status=75
else
    python -m megaslm "$@"
    status=$?
    # A signal ended it before it could answer: it was told to stop all the same.
    if [[ "$told" == yes && "$status" =~ ^(129|130|131|138|143)$ ]]; then status=75; fi
fi
note "$status"

if ((status == 75 || status == 2)); then
    for ((tenths = 0; tenths < 300; tenths++)); do
        ends="$(sort "$statuses"/* | uniq -c | xargs)"
        if [[ "$ends" == "$LOCAL_WORLD_SIZE $status" ]]; then exit 0; fi
        if [[ "$ends" != *running* ]]; then break; fi
        sleep 0.1
    done
fi
exit "$status"
