"""Checks that MegaSLM's losses for an architecture are those of transformers' own model of it.

config.json has dozens of keys that change what a model computes, and each family reads its own selection of them. So
the losses are compared: both implementations run a small model of the same configuration.
"""

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PretrainedConfig

from megaslm.errors import ModelError
from megaslm.model.families import FAMILIES
from megaslm.model.selective_lm import CausalLM, SelectiveLM

_VOCABULARY = 64
_EOS_ID = 0
_ROW_TARGETS = 48
_FIRST_DOCUMENTS = (7, 1)
_WINDOW = 12
_MOST_HEADS = 2
_TOLERANCE_NATS = 1e-3


def require_library_losses(config: PretrainedConfig, *, model: str) -> None:
    """Compares losses of a small model, isolated and not, with those that transformers gives document by document.

    Must not be called where models are divided over ranks while they are built. Takes a fraction of a second.

    Args:
        config: of the model. The kinds of its layers are kept, their sizes and number are not.
        model: its name in messages.

    Raises:
        ModelError: the losses differ.
    """
    row = _row()
    try:
        lm = _drawn(_reduced(config))
        whole, apart = _library_losses(lm, [row]), _library_losses(lm, _documents(row))
        ours = SelectiveLM(lm, eos_id=_EOS_ID, document_isolation=False)
        _require_close(ours.measure(row[None]).losses[0], whole, model, "whole rows")
        ours.document_isolation = True
        _require_close(ours.measure(row[None]).losses[0][row[:-1] != _EOS_ID], apart, model, "documents apart")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{model}: a small model of its config.json does not compute: {type(error).__name__}: {error}; correct the "
            "file"
        ) from error


def _reduced(config: PretrainedConfig) -> PretrainedConfig:
    """The same kinds of layers, one of each and at least two, with heads of the same size and a short window."""
    small = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        first_of_each = list(dict.fromkeys(kinds))
        small.layer_types = first_of_each if len(first_of_each) > 1 else first_of_each * 2
    small.num_hidden_layers = len(small.layer_types) if kinds else 2
    ropes = FAMILIES[config.model_type].ropes_of_layers
    if ropes is not None:
        setattr(small, ropes, [1, 0] * small.num_hidden_layers)
    heads = min(_MOST_HEADS, config.num_attention_heads)
    small.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    small.num_key_value_heads = heads if config.num_key_value_heads == config.num_attention_heads else 1
    small.num_attention_heads = heads
    small.hidden_size = heads * small.head_dim
    small.intermediate_size = small.hidden_size
    if getattr(config, "sliding_window", None):
        small.sliding_window = min(config.sliding_window, _WINDOW)
    small.vocab_size = _VOCABULARY
    small.pad_token_id = small.bos_token_id = None
    small.eos_token_id = _EOS_ID
    small.tie_word_embeddings = False
    return small


def _drawn(config: PretrainedConfig) -> CausalLM:
    """A model with weights so large that attention matters, the same at every call."""
    # "eager" is the library's written-out attention; its default would be the kernel that MegaSLM calls too.
    lm = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.5 / math.sqrt(parameter.shape[-1]), generator=generator)
    return lm.eval()


def _row() -> Tensor:
    """Two short documents and a long one, (targets + 1,)."""
    row = torch.randint(1, _VOCABULARY, (_ROW_TARGETS + 1,), generator=torch.Generator().manual_seed(1))
    row[torch.tensor(_FIRST_DOCUMENTS).cumsum(0) - 1] = _EOS_ID
    return row


def _documents(row: Tensor) -> list[Tensor]:
    starts = [0, *((row[:-1] == _EOS_ID).nonzero().flatten() + 1).tolist(), len(row)]
    return [row[start:stop] for start, stop in pairwise(starts)]


@torch.no_grad()
def _library_losses(lm: CausalLM, documents: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            F.cross_entropy(lm(ids[None, :-1], use_cache=False).logits[0].float(), ids[1:], reduction="none")
            for ids in documents
            if len(ids) > 1
        ]
    )


def _require_close(ours: Tensor, theirs: Tensor, model: str, how: str) -> None:
    largest = float((ours - theirs).abs().max())
    if not largest <= _TOLERANCE_NATS * max(1.0, float(theirs.abs().max())):
        raise ModelError(
            f"{model}: with {how}, MegaSLM's losses of a small model of its config.json differ by up to {largest:.3g} "
            "nats from those of transformers' own model; MegaSLM cannot use this model: report it with the config.json"
        )
