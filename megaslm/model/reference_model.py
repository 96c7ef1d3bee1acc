"""A reference model, run by its record in a dataset's manifest, in windows where its context is too short for a row."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from megaslm.dataset.manifest import Reference
from megaslm.errors import ModelError
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.folder import check_model_folder
from megaslm.model.load import ChosenPrecision, dtype_of, load_pretrained
from megaslm.model.selective_lm import SelectiveLM
from megaslm.model.self_check import require_library_losses
from megaslm.slm.measure import Measure, Measured, TopTokens


class Window(NamedTuple):
    """A stretch of a row's targets that is read on its own."""

    start: int
    """Index of the first target, which is also that of the first token of its context."""
    stop: int
    """Index of the last target, plus one."""
    fresh: int
    """The first target that no earlier window holds; from here on the window's losses are used."""


def windows_of(seq_len: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of `window` targets that cover a row of `seq_len`, `stride` apart; the last one ends with the row.

    Every target is taken from the first window that holds it, where its context is longest: at least window - stride
    tokens, unless the row has fewer before it.

    Raises:
        ValueError: not 1 ≤ stride ≤ window ≤ seq_len.
    """
    if not 1 <= stride <= window <= seq_len:
        raise ValueError(f"stride = {stride}, window = {window}, seq_len = {seq_len}: must not fall in this order")
    covered = 0
    while covered < seq_len:
        start = min(0 if covered == 0 else covered + stride - window, seq_len - window)
        yield Window(start, start + window, covered)
        covered = start + window


class OnItsWay:
    """A tensor that is being copied to the host asynchronously."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def arrived(self) -> Tensor:
        """Waits for the copy and returns it."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


class ReferenceModel:
    """Measures rows, without gradients and dropout."""

    def __init__(self, lm: SelectiveLM, record: Reference, vocab_size: int | None = None) -> None:
        """Takes a model on its device, in evaluation mode. Its top tokens have ids below `vocab_size`, those of the
        rows' vocabulary; None: any."""
        self._lm = lm
        self._record = record
        self._vocab_size = vocab_size

    @classmethod
    def load(
        cls,
        folder: Path,
        record: Reference,
        *,
        eos_id: int,
        vocab_size: int | None = None,
        device: torch.device,
        compiled: bool = False,
    ) -> "ReferenceModel":
        """The model of a Hugging Face folder. Compiling its layers takes minutes, so it pays for many rows only.

        Raises:
            ModelError: the folder is not a model or is incomplete, a weight is NaN or infinite, or the losses differ
                from those of transformers.
        """
        require_library_losses(check_model_folder(folder), model=str(folder))
        dtype = dtype_of(cast(ChosenPrecision, record.precision))
        lm = load_pretrained(folder, dtype=dtype).to(device).eval()
        _require_finite(lm, folder)
        prepare_layers(lm, recompute="none", compiled=compiled)
        return cls(SelectiveLM(lm, eos_id=eos_id, document_isolation=record.document_isolation), record, vocab_size)

    @property
    def device(self) -> torch.device:
        """The device of the model and of its results."""
        return next(self._lm.parameters()).device

    def measure(self, tokens: Tensor) -> Measured:
        """Measures (B, L+1) int64 tokens, window by window where the record's window is shorter than a row.

        From tokens on the host the documents are found without waiting for a GPU.
        """
        what = Measure(self._record.entropy, self._record.top_logits, self._vocab_size)
        windows = windows_of(tokens.shape[1] - 1, self._record.window, self._record.stride)
        found = [
            self._lm.measure(tokens[:, start : stop + 1], what=what).from_target(fresh - start)
            for start, stop, fresh in windows
        ]
        return Measured.joined(found, dim=1)

    def measure_apart(self, tokens: Tensor, document_bounds: Tensor | None = None) -> Tensor:
        """(columns, B, W) float32 values of (B, W+1) int64 tokens that are one window: losses, then any entropies.

        `document_bounds`: on the host, those of the (B, W) inputs, where EOS does not tell them.
        """
        found = self._lm.measure(tokens, document_bounds, Measure(self._record.entropy))
        return torch.stack(found.columns)


def as_stored(nats: Tensor, valid: Tensor) -> Tensor:
    """(B, L) float32 values as a dataset stores them: float16, clamped to [0, 65504], 0 where `valid` is false."""
    return nats.where(valid, 0.0).clamp(0.0, torch.finfo(torch.float16).max).to(torch.float16)


def top_as_stored(top: TopTokens, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Top tokens of (B, L) targets as a dataset stores them: (B, L, K+1) float16, clamped to [-65504, 0], and (B, L, K)
    int32; 0 where `valid` is false."""
    log_probabilities, ids = (each.where(valid[..., None], 0) for each in top)
    least = torch.finfo(torch.float16).min
    return log_probabilities.clamp(least, 0.0).to(torch.float16), ids.to(torch.int32)


def _require_finite(lm: nn.Module, folder: Path) -> None:
    for name, parameter in lm.named_parameters():
        broken = int((~torch.isfinite(parameter)).sum())
        if broken:
            raise ModelError(
                f"{folder}: the weight {name} has {broken} of {parameter.numel()} values that are NaN or infinite; "
                "export or download the model again"
            )
