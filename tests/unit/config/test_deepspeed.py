"""DeepSpeed's configuration follows from ours and is one that DeepSpeed takes."""

from collections.abc import Callable
from typing import Any

import pytest

from megaslm.config.deepspeed import GOVERNED_BY, deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from tests.messages import Says

MakeRun = Callable[..., RunConfig]


def settings(config: RunConfig, *, precision: Any = "bf16", on_gpu: bool = True, world_size: int = 2) -> dict[str, Any]:
    return deepspeed_settings(config, plan_batches(config, world_size), precision=precision, on_gpu=on_gpu)


def test_the_batch_is_the_plans(run_config: MakeRun) -> None:
    found = settings(run_config("train.max_grad_norm=0.5"))
    assert found["train_micro_batch_size_per_gpu"] == 2
    assert found["gradient_accumulation_steps"] == 2
    assert found["gradient_clipping"] == 0.5


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_below_stage_3_there_are_no_stage_3_keys(run_config: MakeRun, stage: int) -> None:
    zero = settings(run_config(f"zero.stage={stage}"), precision="fp32")["zero_optimization"]
    assert zero["stage"] == stage
    assert not [key for key in zero if key.startswith("stage3_")]


def test_communication_overlaps_on_gpus_only(run_config: MakeRun) -> None:
    config = run_config()
    assert settings(config, on_gpu=True)["zero_optimization"]["overlap_comm"] is True
    assert settings(config, on_gpu=False)["zero_optimization"]["overlap_comm"] is False
    assert settings(run_config("zero.overlap_comm=false"))["zero_optimization"]["overlap_comm"] is False


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)])
def test_gradients_accumulate_in_fp32(run_config: MakeRun, precision: str, stage: int) -> None:
    found = settings(run_config(f"zero.stage={stage}"), precision=precision)
    assert found["bf16"]["enabled"] is (precision == "bf16")
    assert found["data_types"]["grad_accum_dtype"] == "fp32"


def test_bf16_without_zero_is_refused(run_config: MakeRun, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(run_config("zero.stage=0"), precision="bf16")
    says(refused, "zero.stage = 0", "bf16", "zero.stage")


def test_offloading_keeps_our_own_optimizer(run_config: MakeRun) -> None:
    config = run_config("zero.offload_optimizer=true")
    assert settings(config)["zero_force_ds_cpu_optimizer"] is False
    assert settings(config)["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert settings(config, on_gpu=False)["zero_optimization"]["offload_optimizer"]["pin_memory"] is False
    assert "zero_force_ds_cpu_optimizer" not in settings(run_config())


def test_offloading_without_zero_is_refused(run_config: MakeRun, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(run_config("zero.offload_optimizer=true", "zero.stage=0"))
    says(refused, "zero.offload_optimizer = true", "zero.stage")


def test_extra_keys_are_merged_last(run_config: MakeRun) -> None:
    config = run_config("deepspeed_extra={zero_optimization: {sub_group_size: 7}, bf16: {immediate_grad_update: true}}")
    found = settings(config)
    assert found["zero_optimization"]["sub_group_size"] == 7
    assert found["zero_optimization"]["stage"] == 3
    assert found["bf16"] == {"enabled": True, "immediate_grad_update": True}


def test_extra_values_are_not_shared_with_the_configuration(run_config: MakeRun) -> None:
    config = run_config("deepspeed_extra={comms_logger: {enabled: true}}")
    settings(config)["comms_logger"]["enabled"] = False
    assert config.deepspeed_extra == {"comms_logger": {"enabled": True}}


@pytest.mark.parametrize(
    ("extra", "key", "owner"),
    [
        ("{train_batch_size: 8}", "train_batch_size", "train.global_batch_tokens"),
        ("{optimizer: {type: Adam}}", "optimizer.type", "train.lr"),
        ("{zero_optimization: {stage: 2}}", "zero_optimization.stage", "zero.stage"),
        ("{zero_optimization: true}", "zero_optimization", "zero.stage"),
        (
            "{zero_optimization: {offload_optimizer: {device: cpu}}}",
            "offload_optimizer.device",
            "zero.offload_optimizer",
        ),
        ("{zero_optimization: {prefetch_bucket_size: 1}}", "prefetch_bucket_size", "zero.prefetch_bucket_size"),
        ("{gradient_allreduce_op: sum}", "gradient_allreduce_op", "loss"),
        ("{fp16: {enabled: true}}", "fp16.enabled", "model.precision"),
        ("{bf16: {check_grad_overflow: false}}", "bf16.check_grad_overflow", "guard"),
        ("{zero_optimization: {compute_grad_norm: false}}", "zero_optimization.compute_grad_norm", "guard"),
    ],
)
def test_extra_keys_that_we_derive_are_refused(
    run_config: MakeRun, extra: str, key: str, owner: str, says: Says
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(run_config(f"deepspeed_extra={extra}"))
    says(caught, key, owner)


def test_every_key_that_we_set_is_guarded(run_config: MakeRun) -> None:
    def leaves(value: object, path: str) -> list[str]:
        if isinstance(value, dict):
            return [leaf for key, below in value.items() for leaf in leaves(below, f"{path}.{key}" if path else key)]
        return [path]

    for stage in (1, 3):
        for leaf in leaves(settings(run_config(f"zero.stage={stage}", "zero.offload_optimizer=true")), ""):
            assert any(f"{leaf}.".startswith(f"{governed}.") for governed in GOVERNED_BY), leaf


@pytest.mark.parametrize(
    ("stage", "precision", "offload", "on_gpu"),
    [  # every pair of values that may stand together
        (0, "fp32", False, False),
        (0, "fp32", False, True),
        (1, "bf16", False, True),
        (1, "fp32", True, False),
        (2, "bf16", True, False),
        (2, "fp32", False, True),
        (3, "bf16", True, True),
        (3, "fp32", False, False),
    ],
)
def test_deepspeed_takes_it_as_meant(
    run_config: MakeRun, stage: int, precision: str, on_gpu: bool, offload: bool
) -> None:
    runtime = pytest.importorskip("deepspeed.runtime.config")
    config = run_config(f"zero.stage={stage}", f"zero.offload_optimizer={str(offload).lower()}")
    taken = runtime.DeepSpeedConfig(settings(config, precision=precision, on_gpu=on_gpu, world_size=1))

    assert (taken.train_micro_batch_size_per_gpu, taken.gradient_accumulation_steps) == (2, 4)
    assert taken.zero_optimization_stage == stage
    assert taken.bfloat16_config.enabled is (precision == "bf16")
    assert taken.timers_config.enabled is False
    assert taken.load_universal_checkpoint is False
    assert taken.gradient_clipping == config.train.max_grad_norm
    if stage > 0:
        assert taken.zero_config.overlap_comm is on_gpu
        assert taken.zero_config.reduce_bucket_size == config.zero.reduce_bucket_size
    if stage == 3:
        assert taken.zero_config.prefetch_bucket_size == config.zero.prefetch_bucket_size
        assert taken.zero_config.param_persistence_threshold == config.zero.param_persistence_threshold
        assert taken.zero_config.max_live_parameters == config.zero.max_live_parameters
        assert taken.zero_config.max_reuse_distance == config.zero.max_reuse_distance
    assert bool(taken.zero_config.offload_optimizer) is offload
    assert taken.zero_force_ds_cpu_optimizer is not offload
