"""DeepSpeed's configuration, derived from MegaSLM's. No other file writes a key of it."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError

NEVER = 2**31 - 1
"""More steps than any run has."""

DENOMINATOR = "the loss: it is divided by the targets of the whole step, on the assumption of DeepSpeed's plain average"
DATA_PARALLEL = "the batch plan: it counts every rank as data parallel"
SKIPPED_STEPS = "the guard: without the norm of the gradient, a step that is NaN would not be skipped"

GOVERNED_BY: Mapping[str, str] = {
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_rows",
    "gradient_accumulation_steps": "train.global_batch_tokens and train.micro_batch_rows",
    "managed_gradient_accumulation": DENOMINATOR,
    "gradient_allreduce_op": DENOMINATOR,
    "gradient_predivide_factor": DENOMINATOR,
    "prescale_gradients": DENOMINATOR,
    "sequence_parallel_size": DATA_PARALLEL,
    "tensor_parallel": DATA_PARALLEL,
    "expert_parallel": DATA_PARALLEL,
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.lr, train.beta1, train.beta2, train.eps and train.weight_decay",
    "scheduler": "train.schedule",
    "bf16.enabled": "model.precision",
    "bf16.check_grad_overflow": SKIPPED_STEPS,
    "bfloat16": "model.precision",
    "fp16": "model.precision",
    "torch_autocast": "model.precision",
    "data_types.grad_accum_dtype": "model.precision",
    "data_types.param_dtype": "model.precision",
    "zero_force_ds_cpu_optimizer": "zero.offload_optimizer",
    "zero_optimization.stage": "zero.stage",
    "zero_optimization.offload_optimizer": "zero.offload_optimizer",
    "zero_optimization.cpu_offload": "zero.offload_optimizer",
    "zero_optimization.overlap_comm": "zero.overlap_comm",
    "zero_optimization.compute_grad_norm": SKIPPED_STEPS,
    "zero_optimization.round_robin_gradients": "nothing: it is always off",
    "zero_optimization.reduce_bucket_size": "zero.reduce_bucket_size",
    "zero_optimization.prefetch_bucket_size": "zero.prefetch_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size": "zero.prefetch_bucket_size",
    "zero_optimization.param_persistence_threshold": "zero.param_persistence_threshold",
    "zero_optimization.stage3_param_persistence_threshold": "zero.param_persistence_threshold",
    "zero_optimization.max_live_parameters": "zero.max_live_parameters",
    "zero_optimization.stage3_max_live_parameters": "zero.max_live_parameters",
    "zero_optimization.max_reuse_distance": "zero.max_reuse_distance",
    "zero_optimization.stage3_max_reuse_distance": "zero.max_reuse_distance",
    "steps_per_print": "log.every_steps",
    "timers.throughput.enabled": "log.every_steps",
    "checkpoint.load_universal": "nothing: checkpoints are MegaSLM's own",
}
"""DeepSpeed keys that `deepspeed_extra` must not set, each with the setting that decides it."""


def deepspeed_settings(
    config: RunConfig,
    plan: BatchPlan,
    *,
    precision: Literal["bf16", "fp32"],
    on_gpu: bool,
) -> dict[str, Any]:
    """DeepSpeed's configuration for a torch AdamW that MegaSLM makes. `deepspeed_extra` is merged last."""
    check_deepspeed(config, precision)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_rows,
        "gradient_accumulation_steps": plan.micro_steps,
        "gradient_clipping": config.train.max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": _zero_optimization(config, on_gpu=on_gpu),
        "steps_per_print": NEVER,
        # DeepSpeed's throughput timer synchronises with the device twice per micro-step.
        "timers": {"throughput": {"enabled": False}},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    if config.zero.offload_optimizer:
        settings["zero_force_ds_cpu_optimizer"] = False
    return _merged(settings, copy.deepcopy(config.deepspeed_extra))


def check_deepspeed(config: RunConfig, precision: str) -> None:
    """Raises ConfigError where the settings contradict one another, for `precision` bf16 or fp32."""
    _refuse_what_needs_zero(config, precision)
    _refuse_governed_keys(config.deepspeed_extra)


def _refuse_what_needs_zero(config: RunConfig, precision: str) -> None:
    if config.zero.stage > 0:
        return
    if config.zero.offload_optimizer:
        raise ConfigError("zero.offload_optimizer = true: needs zero.stage 1, 2 or 3; found zero.stage = 0")
    if precision == "bf16":
        # DeepSpeed would accumulate gradients in bf16, and its optimiser would take a step with zero gradients before
        # the first, which spoils Adam's bias correction.
        raise ConfigError(
            "zero.stage = 0: with bf16 DeepSpeed accumulates gradients in bf16; "
            "use zero.stage 1, 2 or 3, or model.precision = fp32"
        )


def _zero_optimization(config: RunConfig, *, on_gpu: bool) -> dict[str, Any]:
    zero = config.zero
    settings: dict[str, Any] = {"stage": zero.stage}
    if zero.stage > 0:
        settings |= {
            "overlap_comm": zero.overlap_comm and on_gpu,
            "round_robin_gradients": False,
            "reduce_bucket_size": zero.reduce_bucket_size,
        }
    if zero.stage == 3:
        settings |= {
            "stage3_prefetch_bucket_size": zero.prefetch_bucket_size,
            "stage3_param_persistence_threshold": zero.param_persistence_threshold,
            "stage3_max_live_parameters": zero.max_live_parameters,
            "stage3_max_reuse_distance": zero.max_reuse_distance,
        }
    if zero.offload_optimizer:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return settings


def _refuse_governed_keys(extra: Mapping[str, object]) -> None:
    problems = [
        f"deepspeed_extra.{key}: MegaSLM derives DeepSpeed's {governed}; it is decided by {owner}"
        for key in _leaf_keys(extra)
        for governed, owner in GOVERNED_BY.items()
        if f"{key}.".startswith(f"{governed}.") or f"{governed}.".startswith(f"{key}.")
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _leaf_keys(settings: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _merged(settings: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(settings[key], value)
        for key, value in extra.items()
        if isinstance(value, Mapping) and isinstance(settings.get(key), Mapping)
    }
    return {**settings, **extra, **both}
