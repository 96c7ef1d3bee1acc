# Sourced by launcher/hostfile.sh: refuses what would not get to the hosts as it is, with status 2.
# Sets `hosts`, the names in the hostfile, `ranks`, their number, `exported`, NAME=VALUE for each variable that the ranks get, and
# `name_or_address`, the pattern of what they can meet at, and `unfit`.
# shellcheck shell=bash disable=SC2154,SC2034

refuse() { printf '%s\n' "$*" >&2; exit 2; }

# DeepSpeed writes all of this unquoted into a command line that a shell reads on every host.
require_plain() {
    local name="$1" value="$2" remedy="$3"
    if [[ ! "$value" =~ ^[A-Za-z0-9_./:=,@%+^-]+$ ]]; then
        refuse "$name $(printf %q "$value"): may hold letters, digits and _./:=,@%+^- only; $remedy"
    fi
}
for argument in "$@"; do require_plain argument "$argument" "put such a value into the YAML"; done
if [[ -z "$python" ]]; then refuse "there is no python on PATH, and no .venv in $project; install MegaSLM there"; fi
for folder in "$PWD" "$project" "$python"; do
    require_plain folder "$folder" "move it to another path"
    if [[ "$folder" == *:* ]]; then refuse "folder $folder: holds a colon, which PATH cannot; move it"; fi
done
# IPv6 addresses hold colons. Zones (%eth0) are left out: each host calls its interfaces as it likes.
name_or_address='^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$'
if [[ -n "${MASTER_ADDR:-}" && ! "$MASTER_ADDR" =~ $name_or_address ]]; then
    refuse "$(setting MASTER_ADDR) $(printf %q "$MASTER_ADDR"): must be an address or a name of the first host"
fi
if [[ ! "$port" =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then
    refuse "$(setting MASTER_PORT) = $(printf %q "$port"): must be a number from 1 to 65535"
fi
# With --check, 2 where something is missing without which the hosts can be asked all the same.
unfit=0
case "$remote_shell" in
    ssh) ;;
    pdsh)
        if ! command -v pdsh >/dev/null; then
            unfit=2
            echo "pdsh is not installed here; install it, or set $(to_set REMOTE_SHELL ssh)" >&2
            if [[ "$checks_only" == no ]]; then exit 2; fi
        fi
        ;;
    *) refuse "$(setting REMOTE_SHELL) = $(printf %q "$remote_shell"): must be pdsh or ssh" ;;
esac

command -v ssh >/dev/null || refuse "ssh is not installed here; install it"
if [[ ! -f "$hostfile" ]]; then refuse "$hostfile: no such file; write one with a line per host, like \`node-1 slots=8\`"; fi
hosts=()
hosts_and_slots=()
ranks=0
while read -r line || [[ -n "$line" ]]; do
    if [[ -z "$line" || "$line" == \#* ]]; then continue; fi
    if [[ ! "$line" =~ ^([A-Za-z0-9][A-Za-z0-9._-]*)[[:space:]]+slots=([1-9][0-9]{0,3})[[:space:]]*(#.*)?$ ]]; then
        refuse "$hostfile: $(printf %q "$line"): expected a line like \`node-1 slots=8\`: a name of letters, digits, ., _ and -," \
            "and the number of ranks there; users and ports belong into ~/.ssh/config"
    fi
    hosts+=("${BASH_REMATCH[1]}")
    hosts_and_slots+=("${BASH_REMATCH[1]}:${BASH_REMATCH[2]}")
    ((ranks += BASH_REMATCH[2]))
done <"$hostfile"
if ((${#hosts[@]} == 0)); then refuse "$hostfile: names no host"; fi
twice="$(printf '%s\n' "${hosts[@]}" | sort | uniq -d | paste -sd' ')"
if [[ -n "$twice" ]]; then refuse "$hostfile: names $twice more than once"; fi

# DeepSpeed numbers the ranks in the order of the hostfile.
exported=("MEGASLM_JOB=$job" "MEGASLM_HOSTS=$(IFS=,; echo "${hosts_and_slots[*]}")")
names="${EXPORT:-}"
if [[ ! "$names" =~ ^([A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*)?$ ]]; then
    refuse "$(setting EXPORT) = $(printf %q "$names"): must be names of variables, with commas between"
fi
for name in ${names//,/ }; do
    case "$name" in
        MEGASLM_JOB | MEGASLM_HOSTS | RANK | LOCAL_RANK | WORLD_SIZE | LOCAL_SIZE | MASTER_ADDR | MASTER_PORT)
            refuse "$(setting EXPORT): $name is set by the launcher; take it out" ;;
        CUDA_VISIBLE_DEVICES)
            refuse "$(setting EXPORT): $name is set by DeepSpeed, to as many GPUs as a host has slots; take it out" ;;
    esac
    if [[ -z "${!name+set}" ]]; then refuse "$(setting EXPORT): $name is not set here"; fi
    if [[ "${!name}" =~ [[:cntrl:]]|^[[:space:]]|[[:space:]]$ ]]; then
        refuse "$name $(printf %q "${!name}"): a line break or another control character, or a blank at an end, would be lost"
    fi
    exported+=("$name=${!name}")
done
# A disk that the hosts of the job have, and this one may not.
if [[ ! -d "${TMPDIR:-/tmp}" ]]; then unset TMPDIR; fi
