"""Real text and real SentencePiece models, small enough to train in a test. No unit test starts a process."""

import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import pytest
from sentencepiece import SentencePieceTrainer

from megaslm.corpus.python_stdlib import standard_library_files

# What text can do to a tokenizer: indentation, trailing and only spaces, tabs, bytes, marks, special tokens' names.
AWKWARD = (
    "",
    " ",
    "   leading and trailing   ",
    "def f(x):\n\treturn  x\r\n\n\n",
    "café → naïve ∮ 𝄞 é x\x00y",
    "end </s> of <s> text <unk> and a byte <0x41> spelt out </s>",
    "</s>",
    "aaaaaaaaaaaaa          bbbb",
)


def standard_library_texts() -> list[str]:
    """Some modules of the standard library, code and prose."""
    names = ("argparse.py", "json/decoder.py", "this.py", "turtle.py", "email/message.py")
    files = [file for file in standard_library_files("python-source") if file.label.split("/", 1)[1] in names]
    return [Path(file.path).read_text(encoding="utf-8") for file in files]


def shared_texts() -> list[str]:
    """Real documents of three kinds; the test that asks for them skips itself where they are not at hand."""
    shared = os.environ.get("MEGASLM_SHARED_DATA")
    if not shared:
        pytest.skip("MEGASLM_SHARED_DATA is not set")
    texts = []
    for name in ("openlogic", "books", "stacks"):
        with gzip.open(Path(shared) / "text" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for _, line in zip(range(40), lines, strict=False)]
    return texts


def _refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a unit test starts a process; move it to tests/ranks or tests/system")


@pytest.fixture(scope="module", autouse=True)
def no_process() -> Iterator[None]:
    """Refuses forks and processes of multiprocessing, whoever starts them, such as the loaders of torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", _refuse)
        patch.setattr(BaseProcess, "start", _refuse)
        yield


@pytest.fixture(scope="session")
def train_model() -> Callable[..., bytes]:
    """Trains a SentencePiece model on part of the standard library; settings as SentencePiece names them."""

    def train(**settings: object) -> bytes:
        model = io.BytesIO()
        given: dict[str, object] = {
            "model_type": "bpe",
            "vocab_size": 1200,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "allow_whitespace_only_pieces": True,
            "max_sentence_length": 10_000,
            "num_threads": 1,
            "minloglevel": 2,
            **settings,
        }
        lines = (line for text in standard_library_texts() for line in text.splitlines())
        SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **given)
        return model.getvalue()

    return train
