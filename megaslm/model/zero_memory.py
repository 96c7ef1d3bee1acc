"""The bytes of weights, gradients and optimiser on a rank under DeepSpeed ZeRO, and of its buffers, in closed form."""

from dataclasses import dataclass

from megaslm.config.operation import ZeroSection

_SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's `sub_group_size`: stage 3 updates so many elements at a time."""


@dataclass(frozen=True)
class Weights:
    """The parameters of a model as ZeRO divides them."""

    parameters: int
    largest_layer: int
    """Of one decoder layer, which stage 3 gathers as a whole."""
    largest_matrix: int
    """The embedding table, as a rule."""
    element_bytes: int
    """Of a weight in the passes: 2 for bf16, 4 for float32."""


@dataclass(frozen=True)
class ZeroMemory:
    """Bytes per rank."""

    weights: int
    """In the precision of the passes. What stage 3 gathers is not in it."""
    gradients: int
    """As they are added up over micro-steps, in float32."""
    optimizer: int
    """Master weights, where they differ from `weights`, and Adam's two moments, in float32."""
    gathered: int
    """Stage 3: whole weights on a rank, at most."""
    buffers: int
    """In which gradients are reduced."""
    in_flight: int
    """In the backward pass: gradients of a layer, and their copy for the reduction."""
    update: int
    """In the optimiser's step, when there are no activations."""


def zero_memory(zero: ZeroSection, weights: Weights, ranks: int, *, micro_steps: int, on_gpu: bool) -> ZeroMemory:
    """What a rank holds, by the code of DeepSpeed 0.19's stages and MegaSLM's settings for it.

    With P parameters, N ranks and s the bytes of an element:

    - Gradients add up in float32. Stage 3 divides them, and stage 2 too; in float32 stage 2 holds a micro-step's beside
      the sum. Stages 0 and 1 hold them whole.
    - Stage 3 keeps a layer gathered if it comes again within `max_reuse_distance` elements. Of the layers that turn
      around at the end of the forward pass, half of that distance lies on either side.
    - Stage 3 takes the gradients of a whole layer at a time, and copies a bucket to reduce it. Its step copies the
      gradients of a sub-group.
    - A norm is computed in float64, one parameter's share at a time. On a CPU, Adam makes two temporary tensors.

    On a CPU, of a bucket only what is written counts.
    """
    count, size = weights.parameters, weights.element_bytes
    share = -(-count // ranks)
    is_bf16, offloaded = size == 2, zero.offload_optimizer and on_gpu
    divided = zero.stage == 3
    has_master_copy = is_bf16 or zero.stage in (1, 2)
    gradients = {0: 4 * count, 1: 4 * count, 2: 4 * share * (1 if is_bf16 or micro_steps == 1 else 2), 3: 4 * share}
    bucket = zero.reduce_bucket_size if on_gpu else min(zero.reduce_bucket_size, count)
    buffers = {0: 0, 1: 4 * bucket, 2: size * bucket, 3: size * bucket}[zero.stage]
    if zero.overlap_comm and on_gpu and zero.stage in (1, 2):
        buffers *= 2
    copied = {0: 0, 1: share, 2: 0 if is_bf16 else share, 3: min(share, _SUB_GROUP_ELEMENTS)}[zero.stage]
    temporary = 0 if on_gpu else 2 * min(share if zero.stage else weights.largest_matrix, _SUB_GROUP_ELEMENTS)
    norm = 8 * -(-weights.largest_matrix // (ranks if zero.stage >= 2 else 1))
    reused = zero.max_reuse_distance // 2 + zero.prefetch_bucket_size + weights.largest_layer
    return ZeroMemory(
        weights=size * (share if divided else count),
        gradients=0 if offloaded else gradients[zero.stage],
        optimizer=0 if offloaded else 4 * (share if zero.stage else count) * (3 if has_master_copy else 2),
        # A single rank reads its own weights.
        gathered=size * min(count, reused) if divided and ranks > 1 else 0,
        buffers=buffers,
        in_flight=size * (weights.largest_layer + min(zero.reduce_bucket_size, count)) if divided else 0,
        update=0 if offloaded else max(norm, 4 * (copied + temporary)),
    )
