"""The record of the reference in a scored dataset, made after checking that dataset and reference fit."""

import hashlib
from pathlib import Path

import torch

from megaslm.dataset.fit import require_scorable
from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import TOKENIZER, Manifest, Reference, read_manifest
from megaslm.dataset.remote import DatasetFolder
from megaslm.errors import ConfigError
from megaslm.model.attention import flash
from megaslm.model.documents import kernel_name
from megaslm.model.fit import check_model_fits, check_own_tokenizer, require_tokenizer
from megaslm.model.folder import check_model_folder
from megaslm.model.load import choose_precision, dtype_of
from megaslm.model.weight_files import weights_sha256
from megaslm.scoring.derivation_plan import REF_LOSS, with_reference
from megaslm.scoring.request import ScoreRequest, ScoreSettings
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE
from megaslm.tokenizer.tokenizer import tokenizer_sha256


def describe_scored(task: ScoreRequest, dataset: DatasetFolder, device: torch.device) -> Manifest:
    """The manifest of the scored dataset, but with the present parts.

    Raises:
        ModelError: the reference is not a model, is incomplete, or does not fit the rows.
        DataError: the dataset is corrupt, has the column already, or has another tokenizer than the reference.
        ConfigError: window or stride do not fit the rows or the reference, or this machine lacks the FlashAttention.
    """
    settings, reference = task.settings, task.reference
    if (settings.entropy or settings.top_logits) and task.column != REF_LOSS:
        raise ConfigError(f"--as {task.column}: stores losses alone; leave out --entropy and --top-logits")
    flash.activate(settings.flash_attention, device, name="--flash-attention")
    manifest = read_manifest(dataset.path)
    require_scorable(manifest, dataset.place, task.column)
    config = check_model_folder(reference)
    positions = int(config.max_position_embeddings)
    _require_top_fits(settings, manifest.vocab_size)
    if settings.align:
        _require_isolation(settings)
        check_own_tokenizer(reference, config)
        window, stride = _windows_of_documents(settings, manifest.seq_len, positions, reference)
    else:
        require_tokenizer(reference, manifest, tokenizer=dataset.path / TOKENIZER, dataset=dataset.place)
        window, stride = _windows(settings, manifest.seq_len, positions, reference)
        check_model_fits(config, manifest, model=str(reference), dataset=dataset.place, window=window)
    check_layout(dataset.path, shards_are_here=dataset.url is None)
    precision = choose_precision(settings.precision, device)
    described = Reference(
        name=reference.resolve().name if task.run is None else Path(task.run.run).resolve().name,
        weights_sha256=weights_sha256(reference),
        tokenizer_sha256=_other_tokenizer(reference, manifest),
        precision=precision,
        attention=kernel_name(config, device, dtype_of(precision)),
        document_isolation=settings.document_isolation,
        window=window,
        stride=stride,
        batch_rows=settings.batch_rows,
        dataset_sha256=manifest.tokens_fingerprint(),
        entropy=settings.entropy,
        top_logits=settings.top_logits,
        aligned=settings.align,
        run=task.run,
    )
    kind = "scored" if task.column == REF_LOSS else manifest.kind
    return with_reference(manifest.model_copy(update={"kind": kind}), task.column, described)


def _other_tokenizer(reference: Path, manifest: Manifest) -> str | None:
    """The fingerprint of the reference's tokenizer, None if it is the dataset's."""
    content = (reference / TOKENIZER_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() == manifest.tokenizer_files.get(TOKENIZER_FILE):
        return None
    found = tokenizer_sha256(reference)
    return None if found == manifest.tokenizer_sha256 else found


def _windows(settings: ScoreSettings, seq_len: int, positions: int, reference: Path) -> tuple[int, int]:
    """Window and stride. A row is one window if possible."""
    window = min(seq_len, positions) if settings.window is None else settings.window
    if not 1 <= window <= seq_len:
        raise ConfigError(f"--window {window}: must be between 1 and the {seq_len} targets of a row")
    if settings.stride is None:
        if window < seq_len:
            raise ConfigError(
                f"{reference} sees {window} tokens at once, the rows have {seq_len}: pass --stride, such as --stride "
                f"{max(1, window // 2)}, to score each row in windows that overlap"
            )
        return window, window
    if not 1 <= settings.stride <= window:
        raise ConfigError(f"--stride {settings.stride}: must be between 1 and the window, {window}")
    return window, window if window == seq_len else settings.stride


def _windows_of_documents(settings: ScoreSettings, seq_len: int, positions: int, reference: Path) -> tuple[int, int]:
    """Window and stride for documents in the reference's own tokens."""
    window = min(seq_len, positions) if settings.window is None else settings.window
    if not 2 <= window <= positions:
        raise ConfigError(f"--window {window}: must be between 2 and the {positions} positions of {reference}")
    stride = window // 2 if settings.stride is None else settings.stride
    if not 1 <= stride <= window:
        raise ConfigError(f"--stride {stride}: must be between 1 and the window, {window}")
    return window, stride


def _require_top_fits(settings: ScoreSettings, vocab_size: int) -> None:
    if settings.top_logits and settings.align:
        raise ConfigError(
            f"--top-logits {settings.top_logits} beside --align: the reference's most likely tokens are of another "
            "vocabulary than the rows'; leave one of the two out"
        )
    if not 0 <= settings.top_logits < vocab_size:
        raise ConfigError(
            f"--top-logits {settings.top_logits}: must be at least 0 and fewer than the {vocab_size} ids of the "
            "dataset's vocabulary"
        )


def _require_isolation(settings: ScoreSettings) -> None:
    if not settings.document_isolation:
        raise ConfigError("--align reads each document on its own; leave out --no-document-isolation")
