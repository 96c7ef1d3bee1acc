"""Weights, configuration and tokenizer as a Hugging Face folder that any `transformers` script loads."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from megaslm.data.durable import abandon_folder, finish_folder, start_folder
from megaslm.errors import ModelError
from megaslm.model.selective_lm import CausalLM

_WRAPPER = "lm."


def describe_model(lm: CausalLM, dtype: torch.dtype, tokenizer: Path, folder: Path) -> None:
    """Keeps in `folder` what an export needs beside weights: config.json with their dtype, and the tokenizer.

    A folder that holds this already is left as it is, so that checkpoints can be exported at any time.
    """
    described = start_folder(folder)
    shutil.copytree(tokenizer, described, dirs_exist_ok=True)
    lm.config.dtype = dtype
    lm.config.save_pretrained(described)
    if folder.is_dir() and _content(folder) == _content(described):
        abandon_folder(folder)
    else:
        finish_folder(folder)


def _content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_hugging_face(
    weights: Mapping[str, Tensor], model_description: Path, output: Path, *, beside: Sequence[Path] = ()
) -> None:
    """Writes `output` whole or not at all.

    Args:
        weights: of a `SelectiveLM`, on the host; of weights that it uses twice, once.
        model_description: a folder with config.json, whose dtype the weights are saved in, and the tokenizer's files.
        output: the folder to write.
        beside: files to put into it as they are.

    Raises:
        ModelError: the weights are not those of the described model.
    """
    config = AutoConfig.from_pretrained(model_description, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
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
    folder = start_folder(output)
    lm.save_pretrained(folder)
    for weights_file in folder.glob("*.safetensors"):
        # safetensors lets nobody but the owner read its files.
        weights_file.chmod((folder / "config.json").stat().st_mode)
    tokenizer = [path for path in model_description.iterdir() if path.name != "config.json"]
    for path in (*tokenizer, *beside):
        shutil.copyfile(path, folder / path.name)
    finish_folder(output)
