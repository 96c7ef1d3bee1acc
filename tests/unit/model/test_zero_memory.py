"""States by formula: the bytes of each stage, written out for 1.1B and 7B parameters."""

from typing import Any

import pytest

from megaslm.config.operation import ZeroSection
from megaslm.model.zero_memory import Weights, ZeroMemory, zero_memory

P = 7_241_732_096
MISTRAL = Weights(P, largest_layer=218_112_000, largest_matrix=131_072_000, element_bytes=2)
GIB = 2**30


def of(weights: Weights, ranks: int, *, on_gpu: bool = True, micro_steps: int = 2, **zero: Any) -> ZeroMemory:
    return zero_memory(ZeroSection(**zero), weights, ranks, micro_steps=micro_steps, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("stage", "ranks", "gib"),
    [(3, 1, 107.9), (3, 8, 13.5), (3, 32, 3.4), (3, 64, 1.7), (2, 8, 25.3), (1, 8, 37.1)],
)
def test_the_known_figures_of_16_bytes_a_parameter(stage: int, ranks: int, gib: float) -> None:
    """They count gradients in bf16. Here they add up in float32, which takes twice as much."""
    found = of(MISTRAL, ranks, stage=stage)
    assert (found.weights + found.optimizer + found.gradients / 2) / GIB == pytest.approx(gib, abs=0.05)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(1, 2 * P, 4 * P, 12 * P / 8), (2, 2 * P, 4 * P / 8, 12 * P / 8), (3, 2 * P / 8, 4 * P / 8, 12 * P / 8)],
)
def test_each_stage_divides_more_among_8_ranks(stage: int, weights: float, gradients: float, optimizer: float) -> None:
    found = of(MISTRAL, 8, stage=stage)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 4 * P, 4 * P, 8 * P), (2, 4 * P, 2 * 4 * P / 8, 12 * P / 8), (3, 4 * P / 8, 4 * P / 8, 8 * P / 8)],
)
def test_in_float32_stages_0_and_3_need_no_master_weights(
    stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    found = of(Weights(P, 1000, 100, element_bytes=4), 8, stage=stage)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)


def test_stage_3_gathers_what_comes_again_soon() -> None:
    settings = {"max_reuse_distance": 2_000_000_000, "prefetch_bucket_size": 300_000_000}
    assert of(MISTRAL, 8, **settings).gathered == 2 * (1_000_000_000 + 300_000_000 + 218_112_000)
    small = Weights(1000, largest_layer=100, largest_matrix=100, element_bytes=2)
    assert of(small, 8, **settings).gathered == 2 * 1000
    assert of(small, 1, **settings).gathered == 0
    assert of(small, 8, stage=2).gathered == 0


def test_buckets_are_doubled_where_sums_overlap() -> None:
    bucket = {"reduce_bucket_size": 200_000_000}
    assert of(MISTRAL, 8, stage=2, overlap_comm=True, **bucket).buffers == 2 * 2 * 200_000_000
    assert of(MISTRAL, 8, stage=2, overlap_comm=False, **bucket).buffers == 2 * 200_000_000
    assert of(MISTRAL, 8, stage=1, overlap_comm=False, **bucket).buffers == 4 * 200_000_000
    assert of(MISTRAL, 8, stage=3, **bucket).buffers == 2 * 200_000_000


def test_offloaded_states_leave_the_gpu() -> None:
    found = of(MISTRAL, 8, stage=3, offload_optimizer=True)
    assert (found.gradients, found.optimizer, found.update) == (0, 0, 0)
    assert of(MISTRAL, 8, stage=3, offload_optimizer=True, on_gpu=False).optimizer == 12 * P / 8
