"""The memory that the head takes while it computes losses and gradients, in closed form."""

from typing import Literal

import torch

from megaslm.slm.head_pass import chunk_count
from megaslm.slm.token_loss import HeadMethod, cache_bytes

HeadWay = HeadMethod | Literal["every"]
"""How the head computes: `every` row's gradient at once, or by one of the methods for a choice by loss."""


def head_bytes(
    rows: int,
    width: int,
    vocab_size: int,
    dtype: torch.dtype,
    way: HeadWay,
    *,
    keep_ratio: float,
    on_gpu: bool,
) -> int:
    """The most bytes at once in the head's forward pass, beside its input and its weight.

    With T rows, D the width and V the vocabulary: the gradients in float32, 4·T·D and 4·V·D, are there from the start.
    A chunk of n rows has n·V logits in float32. On a GPU, where the model is in bf16, it has their exponentials in
    bf16 beside them, and until these are made those of the chunk before. A forecast of the choice copies the rows that
    it takes. `cache` holds the exponentials of all rows. Numbers per row are left out.

    Args:
        rows: T, the targets of a micro-batch.
        width: D.
        vocab_size: V.
        dtype: of the hidden states and the weight.
        way: how the head computes.
        keep_ratio: the share of rows that a choice by loss takes.
        on_gpu: where it runs. A CPU multiplies in float32, and copies what is bf16.
    """
    in_bf16 = on_gpu and dtype == torch.bfloat16
    gradients = 4 * (rows + vocab_size) * width
    copied = 0 if on_gpu or dtype == torch.float32 else gradients
    chunk = -(-rows // chunk_count(rows, vocab_size, torch.float32, on_gpu=on_gpu))
    logits = 4 * chunk * vocab_size
    # The product by the weight, then its multiple; or the rows of the hidden states, then theirs.
    products = 8 * chunk * width
    if way == "cache":
        kept = round(keep_ratio * rows)
        most = -(-kept // chunk_count(kept, vocab_size, dtype if in_bf16 else torch.float32, on_gpu=on_gpu))
        again = most * (vocab_size * (2 if in_bf16 else 2 + 4) + 8 * width)
        # Float32 logits are in one buffer, which stays.
        work = cache_bytes(rows, vocab_size) + (max(logits, again) if in_bf16 else logits + again)
    else:
        exponentials = logits // 2 if in_bf16 else logits
        taken = int(keep_ratio * exponentials) if way == "bracket" else 0
        work = exponentials + taken + products
        if in_bf16:
            before = exponentials if chunk < rows else 0
            work = max(work, logits + exponentials + before)
    return copied + gradients + work
