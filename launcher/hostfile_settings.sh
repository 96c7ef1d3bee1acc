# Sourced by launcher/hostfile.sh: refuses what would not get to the hosts as it is, with status 2.
# Sets `hosts`, the names in the hostfile, and `exported`, NAME=VALUE for each variable that the ranks get.
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
for folder in "$PWD" "$project" "$python"; do require_plain folder "$folder" "move it to another path"; done
if [[ -n "${MASTER_ADDR:-}" && ! "$MASTER_ADDR" =~ ^[A-Za-z0-9][A-Za-z0-9.:-]*$ ]]; then
    refuse "MASTER_ADDR $(printf %q "$MASTER_ADDR"): must be an address or a name of the first host"
fi
if [[ ! "$port" =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then
    refuse "MASTER_PORT $(printf %q "$port"): must be a number from 1 to 65535"
fi
case "$remote_shell" in
    ssh) ;;
    pdsh) command -v pdsh >/dev/null || refuse "pdsh is not installed here; install it, or set REMOTE_SHELL=ssh" ;;
    *) refuse "REMOTE_SHELL $(printf %q "$remote_shell"): must be pdsh or ssh" ;;
esac

if [[ ! -f "$hostfile" ]]; then refuse "$hostfile: no such hostfile"; fi
hosts=()
while read -r line || [[ -n "$line" ]]; do
    if [[ -z "$line" || "$line" == \#* ]]; then continue; fi
    if [[ ! "$line" =~ ^([A-Za-z0-9][A-Za-z0-9.-]*)[[:space:]]+slots=[1-9][0-9]{0,3}[[:space:]]*(#.*)?$ ]]; then
        refuse "$hostfile: $(printf %q "$line"): must be like \`node-1 slots=8\`, the name of letters, digits, . and -"
    fi
    hosts+=("${BASH_REMATCH[1]}")
done <"$hostfile"
if ((${#hosts[@]} == 0)); then refuse "$hostfile: names no host"; fi
twice="$(printf '%s\n' "${hosts[@]}" | sort | uniq -d | paste -sd' ')"
if [[ -n "$twice" ]]; then refuse "$hostfile: names $twice more than once"; fi

exported=("MEGASLM_JOB=$job")
if [[ ! "${EXPORT:-}" =~ ^([A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*)?$ ]]; then
    refuse "EXPORT $(printf %q "$EXPORT"): must be names of variables, with commas between"
fi
for name in ${EXPORT//,/ }; do
    if [[ -z "${!name+set}" ]]; then refuse "EXPORT: $name is not set here"; fi
    if [[ "${!name}" =~ [[:cntrl:]]|^[[:space:]]|[[:space:]]$ ]]; then
        refuse "$name $(printf %q "${!name}"): a line break or another control character, or a blank at an end, would be lost"
    fi
    exported+=("$name=${!name}")
done
