"""Documents inside packed rows: where each token stands in its own, and whom it may attend to."""

import torch
from torch import Tensor


def document_positions(inputs: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Numbers the documents of each row and the tokens of each document.

    A document starts at a row's first token and after every EOS.

    Args:
        inputs: (B, L) int64.

    Returns:
        The document number and the position within the document, both (B, L) int64 and counted from 0.
    """
    starts = torch.zeros_like(inputs, dtype=torch.bool)
    starts[:, 1:] = inputs[:, :-1] == eos_id
    place = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    start_of_document = torch.where(starts, place, 0).cummax(dim=1).values
    return starts.cumsum(dim=1), place - start_of_document


def attention_within_documents(document: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Causal attention that ends at document borders and, where the architecture has one, at its sliding window.

    Given as an explicit mask: position numbers alone leave isolation to the model library's guess, and an all-ones
    mask beside them silently switches it off. Given as what is added to attention's scores: torch turns truth values
    into that in every layer anew, and in training keeps what it made until the layer's backward pass.

    Args:
        document: (B, L) int64, document numbers.
        window: how many tokens back a token sees, itself counted; None for all.
        dtype: of the queries.

    Returns:
        (B, 1, L, L), 0 where row i attends to column j, else -inf.
    """
    length = document.shape[1]
    place = torch.arange(length, device=document.device)
    distance = place[:, None] - place[None, :]
    visible = document[:, :, None] == document[:, None, :]
    visible &= distance >= 0
    if window is not None:
        visible &= distance < window
    mask = torch.full(visible.shape, float("-inf"), dtype=dtype, device=document.device)
    return mask.masked_fill_(visible, 0.0)[:, None]
