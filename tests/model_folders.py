"""Small model folders, and what plain transformers makes of them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from megaslm.model.folder import EMBEDDING, HEAD
from tests.toy import EOS_ID, VOCAB_SIZE

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
    "pad_token_id": None,
}
REMOVED = object()
"""As the value of a key that is to be taken out."""


def make_model(folder: Path, family: str = "llama", **settings: Any) -> nn.Module:
    """A model with weights so large that attention matters, in a folder; gives the model."""
    if family == "mistral":
        settings = {"sliding_window": None, **settings}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **settings}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0.0, 0.2, generator=generator)
    lm.save_pretrained(folder)
    return lm


def edit_config(folder: Path, **changes: object) -> None:
    """Changes keys of config.json."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not REMOVED}))


def edit_weights(folder: Path, **changes: Tensor) -> None:
    """Adds weights to model.safetensors, or replaces them; of a name, `__` is a full stop."""
    path = folder / "model.safetensors"
    new = {name.replace("__", "."): weight for name, weight in changes.items()}
    save_file({**load_file(path), **new}, path, metadata={"format": "pt"})


def store_head(folder: Path, stored: str) -> None:
    """Makes the folder of an untied model hold `both`, a head `equal` to the embeddings, or only the `embedding`."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    if stored != "both":
        weights[HEAD] = weights[EMBEDDING].clone()
    if stored == "embedding":
        del weights[HEAD]
    save_file(weights, path, metadata={"format": "pt"})


def rows(count: int = 2, targets: int = 40) -> Tensor:
    """Rows with an EOS here and there, (count, targets + 1)."""
    generator = torch.Generator().manual_seed(3)
    made = torch.randint(EOS_ID + 1, VOCAB_SIZE, (count, targets + 1), generator=generator)
    made[0, 9] = made[0, 10] = made[1, 25] = EOS_ID
    return made


@torch.no_grad()
def plain_losses(folder: Path, tokens: Tensor, *, isolated: bool = True) -> Tensor:
    """The losses of plain transformers in float32, document by document or row by row; 0 after an EOS."""
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    losses = torch.zeros(tokens.shape[0], tokens.shape[1] - 1)
    for number, row in enumerate(tokens):
        ends = (row[:-1] == EOS_ID).nonzero().flatten().tolist() if isolated else []
        starts = [0, *(end + 1 for end in ends)]
        for start, stop in zip(starts, [*starts[1:], len(row)], strict=True):
            if stop - start > 1:
                logits = lm(row[None, start : stop - 1], use_cache=False).logits[0]
                losses[number, start : stop - 1] = F.cross_entropy(logits, row[start + 1 : stop], reduction="none")
    return losses.masked_fill(tokens[:, :-1] == EOS_ID, 0.0)
