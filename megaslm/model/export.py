"""Weights, configuration and tokenizer as a Hugging Face folder that any `transformers` script loads."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from megaslm.data.tokenizing.plain_folder import write_plain_folder
from megaslm.errors import ModelError
from megaslm.jobs.durable import abandon_folder, finish_folder, start_folder
from megaslm.model.folder import HEAD, read_config
from megaslm.model.plain_script import Opened, require_same_ids, require_same_model
from megaslm.model.rope import in_both_spellings
from megaslm.model.selective_lm import CausalLM

_WRAPPER = "lm."
_CONFIG, _GENERATION = "config.json", "generation_config.json"


def describe_model(lm: CausalLM, dtype: torch.dtype, tokenizer: Path, folder: Path, *, origin: Path | None) -> None:
    """Keeps in `folder` what an export needs beside weights: config.json with their dtype, and the tokenizer.

    A folder that holds this already is left as it is, so that checkpoints can be exported at any time.

    Args:
        lm: the model.
        dtype: in which its weights are to be saved.
        tokenizer: the folder of the dataset's tokenizer.
        folder: the folder to write.
        origin: the model's folder, where it was loaded from one, which says how to generate text.

    Raises:
        ModelError: a plain script could not open an export, or would give texts other ids.
    """
    described = start_folder(folder)
    try:
        shutil.copytree(tokenizer, described, dirs_exist_ok=True)
        # What the tokenizer was taken from may have been another model's folder.
        (described / _GENERATION).unlink(missing_ok=True)
        if origin is not None and (origin / _GENERATION).is_file():
            _require_generation_config(origin)
            shutil.copyfile(origin / _GENERATION, described / _GENERATION)
        lm.config.dtype = dtype
        lm.config.save_pretrained(described)
        is_there = folder.is_dir() and _content(folder) == _content(described)
        if not is_there:
            _try_tokenizer(described, tokenizer)
    except BaseException:
        abandon_folder(folder)
        raise
    if is_there:
        abandon_folder(folder)
    else:
        finish_folder(folder)


def save_hugging_face(
    weights: Mapping[str, Tensor], model_description: Path, output: Path, *, beside: Sequence[Path] = ()
) -> None:
    """Writes `output` whole or not at all, once a plain script has opened it and seen the same model.

    Args:
        weights: of a `SelectiveLM`, on the host; of weights that it uses twice, once.
        model_description: a folder with config.json, whose dtype the weights are saved in, and the tokenizer's files.
        output: the folder to write.
        beside: files to put into it as they are.

    Raises:
        ModelError: the weights are not those of the described model, or what was written is another model, or gives
            texts other ids, when it is opened.
    """
    lm = _model_of(weights, model_description, output)
    folder = start_folder(output)
    try:
        seen = Opened.of(lm)
        lm.save_pretrained(folder)
        del lm
        _describe(model_description, folder)
        for path in beside:
            shutil.copyfile(path, folder / path.name)
        require_same_ids(folder, model_description)
        require_same_model(folder, seen)
    except BaseException:
        abandon_folder(output)
        raise
    finish_folder(output)


def _model_of(weights: Mapping[str, Tensor], model_description: Path, output: Path) -> CausalLM:
    config = read_config(model_description)
    config.tie_word_embeddings = config.tie_word_embeddings and f"{_WRAPPER}{HEAD}" not in weights
    # Without memory for weights, which come from the checkpoint, but with what else a model computes with.
    with init_empty_weights(include_buffers=False):
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    lm.tie_weights()
    once = {name for name, _ in lm.named_parameters()}
    again = {name for name, _ in lm.named_parameters(remove_duplicate=False)} - once
    state = {name.removeprefix(_WRAPPER): tensor.to(config.dtype) for name, tensor in weights.items()}
    expected = set(lm.state_dict()) - again
    if expected != set(state):
        different = ", ".join(sorted(expected ^ set(state))[:5])
        raise ModelError(f"{output}: the checkpoint's weights are not those of its model configuration: {different}")
    lm.load_state_dict(state, assign=True, strict=False)
    lm.tie_weights()
    return lm.eval()


def _describe(model_description: Path, folder: Path) -> None:
    """Puts what is not weights into a folder with the weights and a config.json, in files that every release reads."""
    config = in_both_spellings(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (model_description / _GENERATION).is_file():
        shutil.copyfile(model_description / _GENERATION, folder / _GENERATION)
    write_plain_folder(model_description, folder, begins_with_bos=config.get("bos_token_id") is not None)
    for weights_file in folder.glob("*.safetensors"):
        # safetensors lets nobody but the owner read its files.
        weights_file.chmod((folder / _CONFIG).stat().st_mode)


def _require_generation_config(folder: Path) -> None:
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and what it calls raise anything for values that they do not expect.
        raise ModelError(
            f"{folder / _GENERATION}: transformers cannot read how to generate: {type(error).__name__}: {error}; no "
            "script could open an export: correct the file or remove it"
        ) from error


def _try_tokenizer(described: Path, tokenizer: Path) -> None:
    """Whether an export of a described model would give texts the ids of the dataset's tokenizer."""
    trial = start_folder(described / "trial")
    try:
        shutil.copyfile(described / _CONFIG, trial / _CONFIG)
        _describe(described, trial)
        require_same_ids(trial, tokenizer)
    finally:
        abandon_folder(described / "trial")


def _content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
