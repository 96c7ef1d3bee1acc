"""Conversations in ToRA's form, and tokenizers of several kinds to encode them."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from megaslm.config.recipe import TrainSentencePiece
from megaslm.corpus.record_text import Message
from megaslm.preparing.tokenizer_training import train_on
from megaslm.tokenizer.sentencepiece_export import export_sentencepiece

QUESTION = "What is the sum of 17 and 25?"
ANSWER = (
    "We add the two numbers.\n\n```python\nprint(17 + 25)\n```\n```output\n42\n```\nThe answer is $\\boxed{42}$ – 🙂."
)
OWN_WORDS = (
    "We add the two numbers.\n\n```python\nprint(17 + 25)\n```\n```output",
    "The answer is $\\boxed{42}$ – 🙂.",
)
"""What the assistant writes of ANSWER: the output and its closing fence are the tool's."""
TRAJECTORY = (Message("user", QUESTION), Message("assistant", ANSWER))
TEXT = f"<|user|>\n{QUESTION}\n<|assistant|>\n{ANSWER}"

CHAT_ML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def as_records(*conversations: tuple[Message, ...]) -> str:
    """JSON lines with a field `messages`."""
    records = [{"messages": [message._asdict() for message in messages]} for messages in conversations]
    return "".join(json.dumps(record) + "\n" for record in records)


def sentencepiece_folder(folder: Path) -> None:
    """A SentencePiece model that spells rare characters in bytes, exported."""
    folder.mkdir(parents=True)
    export_sentencepiece(train_on([TEXT] * 3, TrainSentencePiece(vocab_size=330)), folder)


def prefixing_folder(folder: Path) -> None:
    """The same with a space before every text, as Llama-2 has it."""
    sentencepiece_folder(folder)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    state["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")


def byte_level_folder(folder: Path) -> None:
    """A byte-level BPE whose post-processor moves the start of a token behind its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def with_template(folder: Path, template: str) -> Path:
    """The byte-level tokenizer with a chat template."""
    byte_level_folder(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


FOLDERS: dict[str, Callable[[Path], None]] = {
    "sentencepiece": sentencepiece_folder,
    "prefixing": prefixing_folder,
    "byte level": byte_level_folder,
}
