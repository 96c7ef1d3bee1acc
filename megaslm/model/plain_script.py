"""A model's folder, opened as a script opens it that knows nothing of MegaSLM: AutoModel and AutoTokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from megaslm.data.tokenizing.tokenizer import FolderEncoder
from megaslm.errors import ModelError
from megaslm.model.selective_lm import CausalLM

_TRIED_TOKENS = 8
_TOLERANCE_NATS = 1e-3
_SHOWN_IDS = 8
_OF_THE_FILE = ("_name_or_path", "architectures", "transformers_version")
# Characters on which tokenizers part ways: spaces of all kinds, line ends, what combines or has two forms, joined
# emoji, digits, signs, other scripts, bytes of no character, and what stands for a space or a byte in vocabularies.
_SAMPLE = (
    "The river bank, don't you see: it's 12 or 3,456.789 km!",
    " one space before,  two between,   three at the end   ",
    "\ttab\tand\n\nlines\r\nof\r\n\r\nWindows\x0b\x0c\x85\u2028\u2029",
    "no-break\u00a0space, thin\u2009space, zero\u200bwidth, ideographic\u3000space",
    "Ti\u1ebfng Vi\u1ec7t, Tie\u0302\u0301ng Vie\u0323\u0302t, caf\u00e9, cafe\u0301, \ufb01ne, \u212b",
    "\uff8a\uff9f\uff7f\uff7a\uff9d \uff76\uff9e, 日本語の文章。 你好，世界",
    "한국어 \u1112\u1161\u11ab, हिन्दी, العربية, ελληνικά, русский",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f600\U0001f600",
    "x_1 = (a+b)**2 / {c[0]}; // \u222b\u2211\u221a \u00bd \u00b2 \u20ac \u2014 \u2026 \u201cquoted\u201d",
    "\u2581marked <0x0A> \u0120byte\u010a \ufeff\ufffd \ue000",
    "camelCase HTTPServer snake_case ALLCAPS aaaaaaaaaaaaaaaa 0000000000000000",
    "",
)


class Opened(NamedTuple):
    """What a script sees of a model: its configuration, and the loss of a few tokens in nats."""

    settings: dict[str, Any]
    loss: float

    @classmethod
    def of(cls, lm: CausalLM) -> "Opened":
        """Looks at a model on the host, in evaluation mode."""
        settings = {key: value for key, value in lm.config.to_dict().items() if key not in _OF_THE_FILE}
        return cls(settings, _loss(lm))


def require_same_ids(folder: Path, tokenizer: Path) -> None:
    """Raise ModelError unless AutoTokenizer gives texts, by a folder, the ids that a dataset's tokenizer gives them."""
    with _refusing_files(tokenizer):
        opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    encoder = FolderEncoder(tokenizer)
    named = tuple(f"a {token}b {token} c" for token in opened.all_special_tokens)
    for text in (*_SAMPLE, *named):
        expected = encoder.encode([text])[0].tolist()
        with _refusing_files(tokenizer):
            found = opened(text, add_special_tokens=False, split_special_tokens=text in named)["input_ids"]
        if found != expected:
            first = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
            raise ModelError(
                f"{tokenizer}: AutoTokenizer opens this tokenizer beside this model as {type(opened).__name__}, which "
                f"gives {text!r} the ids {found[first : first + _SHOWN_IDS]} from token {first} on; the rows have "
                f"{expected[first : first + _SHOWN_IDS]}: an export would be another model for every script; use the "
                "tokenizer that belongs to the model's architecture, or another architecture"
            )


def require_same_model(folder: Path, expected: Opened) -> None:
    """Raise ModelError unless AutoModelForCausalLM gives, by a folder, the model that was to be written there."""
    lm = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    found = Opened.of(lm.eval())
    keys = sorted(expected.settings.keys() | found.settings.keys())
    different = [key for key in keys if expected.settings.get(key) != found.settings.get(key)]
    if different:
        read = "; ".join(f"{key} = {found.settings.get(key)}, not {expected.settings.get(key)}" for key in different)
        raise ModelError(f"{folder}: AutoModelForCausalLM reads {read}; report it with the config.json")
    if not abs(found.loss - expected.loss) <= _TOLERANCE_NATS * max(1.0, abs(expected.loss)):
        raise ModelError(
            f"{folder}: when AutoModelForCausalLM opens it, its loss on the same tokens is {found.loss:.4f} nats, that "
            f"of the trained model {expected.loss:.4f}; report it with the config.json"
        )


@contextmanager
def _refusing_files(tokenizer: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers and what it calls raise anything for files that they do not expect.
        raise ModelError(
            f"{tokenizer}: AutoTokenizer cannot use the tokenizer: {type(error).__name__}: {error}; correct "
            "tokenizer_config.json"
        ) from error


@torch.no_grad()
def _loss(lm: CausalLM) -> float:
    """Of tokens spread over the vocabulary."""
    ids = torch.arange(1, _TRIED_TOKENS + 2) * (lm.config.vocab_size - 1) // (_TRIED_TOKENS + 2)
    logits = lm(ids[None, :-1], use_cache=False).logits[0]
    return float(F.cross_entropy(logits.float(), ids[1:]))
