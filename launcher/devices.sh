# Sourced by local.sh and torchrun.sh, with the number of ranks that is asked for, if any, as the only argument.
# Sets `gpus`, the numbers of the GPUs that may be used with commas between, and `ranks`; without GPUs also what ranks
# on CPUs need in their environment.
# shellcheck shell=bash disable=SC2034

present=""
if [[ "${CUDA_VISIBLE_DEVICES-unset}" != "" ]] && command -v nvidia-smi >/dev/null; then
    if ! listed="$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&1)"; then
        # Its complaint goes to either output. Ranks that train on CPUs instead would be found out after hours.
        printf 'nvidia-smi: %s; mend the driver, or set CUDA_VISIBLE_DEVICES= to compute on CPUs\n' "$listed" >&2
        exit 2
    fi
    present="$(paste -sd, <<<"$listed")"
fi
gpus="${CUDA_VISIBLE_DEVICES-$present}"
if [[ -n "$gpus" ]]; then
    if [[ ! "$gpus" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
        printf 'CUDA_VISIBLE_DEVICES = %q: must be numbers of GPUs with commas between\n' "$gpus" >&2
        exit 2
    fi
    for gpu in ${gpus//,/ }; do
        if [[ -n "$present" && ",$present," != *",$gpu,"* ]]; then
            echo "CUDA_VISIBLE_DEVICES = $gpus: this host has no GPU $gpu; it has $present" >&2
            exit 2
        fi
    done
    found="$(tr ',' '\n' <<<"$gpus" | wc -l)"
    ranks="${1:-$found}"
    if ((ranks > found)); then
        echo "$ranks ranks are asked for, and there are $found GPUs to use: $gpus; each rank takes one" >&2
        exit 2
    fi
else
    ranks="${1:-2}"
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
    cores="$(nproc)"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}"
fi
