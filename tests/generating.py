"""Small models that continue texts: a byte-level tokenizer with a few merges beside random weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megaslm.generation.local import LocalGenerator
from megaslm.generation.sampling import Completion, Prompt
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.plain_lm import PlainLM
from tests.model_folders import make_model

EOS = "</s>"
EOS_ID = 0
VOCAB_SIZE = 320
CONTEXT_TOKENS = 128
TEXT = (
    "the sum of two and three is five, so the answer is five. A question: what is the answer? Answer: 12 + 30 = 42\n\n"
)


def make_tokenizer(folder: Path) -> Tokenizer:
    """Bytes, some merges of them, and `</s>`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def make_folder(folder: Path, family: str = "llama", **settings: Any) -> Path:
    """A model that has the tokenizer of `make_tokenizer`."""
    shape = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT_TOKENS, "eos_token_id": EOS_ID}
    make_model(folder, family, **{**shape, **settings})
    make_tokenizer(folder)
    return folder


def load(folder: Path) -> tuple[PlainLM, TextTokens]:
    return PlainLM.load(folder, dtype=torch.float32, device=torch.device("cpu")), TextTokens.of_folder(folder)


_loaded = cache(load)


def generator_of(folder: Path, batch_rows: int = 16) -> LocalGenerator:
    """Of the folder's model, which is loaded once."""
    return LocalGenerator.of(*_loaded(folder), batch_rows=batch_rows)


def texts_of(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def prompts_of(*texts: str) -> list[Prompt]:
    """With their places as keys."""
    return [Prompt(text, key) for key, text in enumerate(texts)]
