"""A user's own model and text: a small llama that saves as transformers does, with a BOS, and two jsonl files."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.corpus import text

BOS, EOS = "<s>", "</s>"
DOCUMENTS, PROBLEMS = 300, 120


def make_tokenizer(folder: Path, *, bos: bool = True) -> int:
    """A Hugging Face tokenizer; `bos`: whether it puts BOS before a text. Gives its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[BOS, EOS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text(seed) for seed in range(50)], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def make_model(folder: Path, *, bos: bool = True, positions: int = 256) -> Path:
    """A Hugging Face folder with weights, configuration and the tokenizer of `make_tokenizer`."""
    vocab_size = make_tokenizer(folder, bos=bos)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def write_corpus(path: Path, documents: int = DOCUMENTS) -> Path:
    """Documents with an address, one per line."""
    return _write(path, [{"url": f"u{seed}", "text": text(seed)} for seed in range(documents)])


def write_problems(path: Path, problems: int = PROBLEMS) -> Path:
    """Questions and answers, one pair per line."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 100, size=(problems, 2)).tolist()
    return _write(
        path,
        [
            {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}, so the answer is {a + b}."}
            for a, b in numbers
        ],
    )


def _write(path: Path, records: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
