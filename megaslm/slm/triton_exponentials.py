"""The exponentials of a chunk of logits as one Triton kernel: two reads and one write of each logit.

Torch runs a separate kernel for the maximum, the subtraction, the exponential, the sum and the copy to bfloat16. Each
of them passes over the whole chunk in the GPU's memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_COLUMNS = 8192
# Wide programs keep few rows in flight, so that a row is likely still in the L2 cache at its second read.
_WARPS = 16


def fused_exponentials(logits: Tensor, targets: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Writes exp(z - max z) of every row into `out` and returns the losses and the norms. No gradient flows.

    Args:
        logits: (C, V) float32, on a GPU (or on the CPU under Triton's interpreter); unchanged where `out` is separate.
        targets: (C,) int64, in [0, V). A row whose target is outside has a NaN loss; to raise an error, the host would
            have to wait for the GPU.
        out: (C, V), `logits` itself or a separate tensor, float32 or bfloat16.

    Returns:
        Losses and norms, each (C,) float32; see `megaslm.slm.exponentials.exponentials`.

    Raises:
        ValueError: where the rows of `logits` or `out` are not contiguous.
    """
    rows, columns = logits.shape
    if logits.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError(
            f"the rows of logits and out have column strides {logits.stride(1)} and {out.stride(1)}, expected 1 and 1: "
            "pass contiguous rows"
        )
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    norms = torch.empty_like(losses)
    # Triton launches on the current device, which may differ from that of the logits.
    with torch.cuda.device_of(logits):
        _exponentials_of_a_row[(rows,)](
            logits,
            targets.contiguous(),
            out,
            losses,
            norms,
            columns,
            logits.stride(0),
            out.stride(0),
            BLOCK_COLUMNS=_BLOCK_COLUMNS,
            num_warps=_WARPS,
        )
    return losses, norms


@triton.jit
def _exponentials_of_a_row(
    logits: tl.tensor,
    targets: tl.tensor,
    out: tl.tensor,
    losses: tl.tensor,
    norms: tl.tensor,
    columns: tl.tensor,
    logits_stride: tl.tensor,
    out_stride: tl.tensor,
    BLOCK_COLUMNS: tl.constexpr,
) -> None:
    # A chunk may have more than 2^31 logits.
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    out += row * out_stride
    block = tl.arange(0, BLOCK_COLUMNS)

    target = tl.load(targets + row)
    target_logit = tl.load(logits + target, mask=(target >= 0) & (target < columns), other=float("nan"))

    maximum = float("-inf")
    norm = 0.0
    for start in range(0, columns, BLOCK_COLUMNS):
        inside = start + block < columns
        values = tl.load(logits + start + block, mask=inside, other=float("-inf"))
        maximum_before = maximum
        maximum = tl.maximum(maximum_before, tl.max(values, 0))
        # While there is only -inf, a finite shift gives exponentials of 0; -inf would give NaN.
        shift = tl.where(maximum == float("-inf"), 0.0, maximum)
        norm = norm * tl.exp(maximum_before - shift) + tl.sum(tl.exp(values - shift), 0)

    # A GPU's maximum ignores NaN; the sum does not. A norm of 0 is a row of -inf, which has no distribution.
    norm = tl.where(norm > 0.0, norm, float("nan"))
    tl.store(norms + row, norm)
    tl.store(losses + row, tl.log(norm) + (maximum - target_logit))

    # In place, no thread may write an element before another has read it.
    tl.debug_barrier()
    for start in range(0, columns, BLOCK_COLUMNS):
        inside = start + block < columns
        values = tl.load(logits + start + block, mask=inside, other=float("-inf"))
        tl.store(out + start + block, tl.exp(values - maximum), mask=inside)
