"""Checks that a model and a dataset belong together. Imports neither transformers nor torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import Manifest
from megaslm.errors import ConfigError, DataError, ModelError
from megaslm.model.stated_config import StatedShape
from megaslm.tokenizer.bos import puts_bos
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE, special_id
from megaslm.tokenizer.tokenizer import ids_sha256, load_tokenizer, text_tokenizer, tokenizer_facts, tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_COST = "the first tokens of each document are predicted worse than they could be (docs/results.md has measurements)"


def longest_steady_row(config: "PretrainedConfig | StatedShape") -> int | None:
    """The number of tokens beyond which a row's angles depend on other rows of its batch; None where they never do.

    Under `longrope`, transformers changes the angles of all rows of a batch as soon as one has a longer document.
    """
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if stated.get("rope_type", stated.get("type")) != "longrope":
        return None
    original = getattr(config, "original_max_position_embeddings", None)
    return int(original or stated.get("original_max_position_embeddings") or config.max_position_embeddings)


def check_model_fits(
    config: "PretrainedConfig | StatedShape",
    manifest: Manifest,
    *,
    model: str,
    dataset: str | Path,
    window: int | None = None,
) -> None:
    """Compares a model's shape with a dataset's rows, or with the windows in which it reads them.

    Raises:
        ModelError: the model has fewer embeddings than the tokenizer has ids, or was built for shorter rows.
    """
    if config.vocab_size < manifest.vocab_size:
        raise ModelError(
            f"{model} has a vocabulary of {config.vocab_size}; {dataset} was tokenised with one of "
            f"{manifest.vocab_size}; prepare the text with the model's tokenizer"
        )
    if config.max_position_embeddings < (window or manifest.seq_len):
        positions = config.max_position_embeddings
        if window is None:
            asked = f"{dataset} has rows of {manifest.seq_len}; prepare the text with seq_len={positions} or less"
        else:
            asked = f"--window {window} is longer; lower it"
        raise ModelError(f"{model} was built for rows of {positions} tokens; {asked}")
    steady = longest_steady_row(config)
    if steady is not None and steady < (window or manifest.seq_len):
        raise ModelError(
            f"{model} scales its positions by longrope: with rows of more than {steady} tokens a loss would depend on "
            f"the rows beside it; prepare {dataset} with shorter rows or, to score it, pass --window {steady}"
        )


def check_cache_fits(config: RunConfig, plan: BatchPlan, vocab_size: int) -> None:
    """Raises ConfigError where `slm.head: cache` exceeds its budget in a run whose choices wait for the losses."""
    slm = config.slm
    measured_first = slm.scope == "batch" and slm.mode == "exact" and plan.micro_steps > 1
    waits_for_losses = config.train.objective == "slm" and slm.sorts_by_model and not measured_first
    if slm.head != "cache" or not waits_for_losses:
        return
    # Only these runs need torch here.
    from megaslm.slm.token_loss import cache_bytes

    needed_gib = cache_bytes(plan.micro_batch_rows * plan.seq_len, vocab_size) / (1 << 30)
    if needed_gib > slm.head_cache_gib:
        raise ConfigError(
            f"slm.head = cache: holds {needed_gib:.3g} GiB for {plan.micro_batch_rows} rows of {plan.seq_len} targets "
            f"and a vocabulary of {vocab_size}, more than slm.head_cache_gib = {slm.head_cache_gib:.3g}; raise it, "
            "lower train.micro_batch_rows, or use slm.head = bracket"
        )


_PREPARE_AGAIN = "prepare the text with the model's tokenizer"


def check_tokenizer_fits(
    model_folder: Path, manifest: Manifest, *, tokenizer: Path, dataset: str | Path, advice: str = _PREPARE_AGAIN
) -> None:
    """Compares the ids from the tokenizer in a model's folder, where it has one, with those of a dataset.

    Args:
        model_folder: the model's.
        manifest: of the dataset.
        tokenizer: the folder of the dataset's tokenizer.
        dataset: its name in messages.
        advice: what to do where the ids or the BOS differ.

    Raises:
        DataError: the ids differ, or rows have another BOS.
    """
    if not (model_folder / TOKENIZER_FILE).is_file():
        return
    # The manifests of earlier versions lack the fingerprint.
    expected = manifest.ids_sha256 or _ids_sha256(tokenizer, manifest.eos_id)
    if _ids_sha256(model_folder, manifest.eos_id) != expected:
        raise DataError(
            f"{model_folder} has the tokenizer {tokenizer_sha256(model_folder)[:12]}; {dataset} was tokenised with "
            f"{manifest.tokenizer_sha256[:12]}, which gives texts other ids, so that losses would be "
            f"meaningless: {advice}"
        )
    if manifest.bos_in_rows is not None:
        _require_bos(model_folder, manifest, manifest.bos_in_rows, tokenizer=tokenizer, dataset=dataset, advice=advice)


def _require_bos(
    model_folder: Path, manifest: Manifest, bos_id: int, *, tokenizer: Path, dataset: str | Path, advice: str
) -> None:
    """Raise DataError where the model's tokenizer names another BOS than rows have, or has another token in its id."""
    own, of_rows = load_tokenizer(model_folder), load_tokenizer(tokenizer)
    named = special_id(model_folder, own, "bos")
    found = bos_id if named is None else named
    if (found, own.id_to_token(found)) != (bos_id, of_rows.id_to_token(bos_id)):
        raise DataError(
            f"{model_folder} has the BOS {found}, {own.id_to_token(found)!r}; rows of {dataset} (bos: "
            f"{manifest.packing.bos}) have {bos_id}, {of_rows.id_to_token(bos_id)!r}: {advice}"
        )


def bos_warning(model_folder: Path, manifest: Manifest, *, dataset: str | Path, otherwise: str = "") -> str | None:
    """A warning where a model's own tokenizer puts BOS before a text and rows have none, or the other way round.

    None where they agree, or the model's folder has no tokenizer. `otherwise` ends the first warning: what else gives
    the model its BOS. Raises DataError where the tokenizer cannot be read.
    """
    if not (model_folder / TOKENIZER_FILE).is_file():
        return None
    model_has, rows_have = puts_bos(model_folder, manifest.eos_id), manifest.packing.bos != "none"
    if model_has == rows_have:
        return None
    if model_has:
        return (
            f"the tokenizer of {model_folder} puts BOS before a text, and the rows of {dataset} have none: {_COST}; if "
            f"the model was trained with BOS, prepare the text with `bos: document`{otherwise}"
        )
    return (
        f"the tokenizer of {model_folder} puts no BOS before a text, and the rows of {dataset} have one (bos: "
        f"{manifest.packing.bos}): {_COST}; if the model was trained without BOS, prepare the text with `bos: none`"
    )


def require_tokenizer(model_folder: Path, manifest: Manifest, *, tokenizer: Path, dataset: str | Path) -> None:
    """Like `check_tokenizer_fits`, for a reference that scores: its folder must have a tokenizer.

    Raises:
        DataError: the folder has another tokenizer, or none.
    """
    if not (model_folder / TOKENIZER_FILE).is_file():
        raise DataError(
            f"{model_folder} has no {TOKENIZER_FILE}, and {dataset} was tokenised with "
            f"{manifest.tokenizer_sha256[:12]}: its ids may be others; if they are the same, copy the "
            f"files of {dataset}/tokenizer into it"
        )
    advice = f"score with --align, or {_PREPARE_AGAIN}"
    check_tokenizer_fits(model_folder, manifest, tokenizer=tokenizer, dataset=dataset, advice=advice)


def check_own_tokenizer(model_folder: Path, config: "PretrainedConfig") -> None:
    """Checks that a model's folder has the tokenizer by which the model was trained.

    Raises:
        DataError: the folder has no tokenizer, or one that names no EOS.
        ModelError: the model has fewer embeddings than the tokenizer has ids.
    """
    if not (model_folder / TOKENIZER_FILE).is_file():
        raise DataError(
            f"{model_folder} has no {TOKENIZER_FILE}, in whose tokens the model reads texts; copy the files of its "
            "tokenizer into it"
        )
    vocab_size = tokenizer_facts(model_folder).vocab_size
    if config.vocab_size < vocab_size:
        raise ModelError(
            f"{model_folder} has a vocabulary of {config.vocab_size}, and its {TOKENIZER_FILE} has ids up to "
            f"{vocab_size - 1}: it belongs to another model; copy the files of the model's own tokenizer"
        )


def _ids_sha256(folder: Path, eos_id: int) -> str:
    return ids_sha256(text_tokenizer(folder, eos_id), eos_id)
