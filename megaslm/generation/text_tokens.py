"""Prompts to token ids, and generated ids to text while they arrive."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from megaslm.errors import DataError, ModelError
from megaslm.generation.sampling import Prompt
from megaslm.tokenizer.bos import puts_bos
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE, read_object, require_eos, special_id
from megaslm.tokenizer.tokenizer import refusing_texts, text_tokenizer

_MODEL_CONFIGS = ("config.json", "generation_config.json")
_REPLACEMENT = "\ufffd"
"""Stands for bytes that are no character, or not yet."""
# Tokens before a continuation decide whether a decoder strips the space at its front.
_CONTEXT_TOKENS = 6


class TextTokens:
    """The tokenizer of a folder, as a model's texts need it."""

    def __init__(
        self, tokenizer: Tokenizer, *, eos_ids: Sequence[int], bos_id: int | None, front: Sequence[int]
    ) -> None:
        """`tokenizer` is as `text_tokenizer` gives it. `front`: the ids that come before the text of a prompt."""
        self._tokenizer = tokenizer
        self._front = list(front)
        self.eos_ids = frozenset(eos_ids)
        """The tokens that end a text."""
        self.pad_id = min(eos_ids)
        """Fills up rows; exported models have no padding token of their own."""
        self.start_id = self.pad_id if bos_id is None else bos_id
        """The token before a text without context: BOS, or EOS where there is none."""

    @classmethod
    def of_folder(cls, folder: Path) -> "TextTokens":
        """Of a model's folder, or of a dataset's tokenizer. Ends texts at every EOS that a file of the folder names.

        Raises:
            ModelError: the folder has no tokenizer.
            DataError: its tokenizer cannot be read, or has no EOS.
        """
        if not (folder / TOKENIZER_FILE).is_file():
            raise ModelError(
                f"{folder}: no {TOKENIZER_FILE}; text cannot become token ids without one: use an exported folder, or "
                "copy the tokenizer's files of the training data into it"
            )
        tokenizer = text_tokenizer(folder)
        eos_id = require_eos(folder, tokenizer)
        bos_id = special_id(folder, tokenizer, "bos")
        front = [bos_id] if bos_id is not None and puts_bos(folder, eos_id) else []
        return cls(tokenizer, eos_ids=[eos_id, *_stated_eos_ids(folder)], bos_id=bos_id, front=front)

    @property
    def vocab_size(self) -> int:
        """The largest id, plus one."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text as a prompt begins with it: after BOS, where the tokenizer puts one.

        Raises DataError where the tokenizer has no ids for a text.
        """
        with refusing_texts():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*self._front, *encoding.ids] for encoding in encodings]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The ids of each prompt. Raises DataError for a prompt that is empty, or that the tokenizer cannot encode."""
        for place, prompt in enumerate(prompts):
            require_content(prompt, place)
        texts = [prompt.content for prompt in prompts if isinstance(prompt.content, str)]
        encoded = iter(self.encode(texts))
        return [next(encoded) if isinstance(prompt.content, str) else list(prompt.content) for prompt in prompts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def require_content(prompt: Prompt, place: int) -> None:
    """Raise DataError where a prompt is empty."""
    if not prompt.content:
        raise DataError(
            f"the prompt at place {place} (key {prompt.key}) is empty: there is nothing to continue; leave its item "
            "out, or correct the prompt's template"
        )


class GrowingText:
    """The text of a continuation, token by token.

    Bytes that are not a whole character yet wait for the next token.
    """

    def __init__(self, tokens: TextTokens, prompt: Sequence[int]) -> None:
        """Takes the ids of the prompt that is continued."""
        self._tokens = tokens
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        # The text holds the ids before `_known`. Those from `_context` on are decoded again with the next ones.
        self._context, self._known = 0, len(self._ids)
        self.text = ""

    def add(self, ids: Sequence[int]) -> None:
        """Adds tokens to the text."""
        self._ids.extend(ids)
        before = self._tokens.decode(self._ids[self._context : self._known])
        after = self._tokens.decode(self._ids[self._context :])
        if after.endswith(_REPLACEMENT):
            return
        self._append(before, after)
        self._context, self._known = self._known, len(self._ids)

    def end(self) -> str:
        """The whole text, without an incomplete character at its end."""
        before = self._tokens.decode(self._ids[self._context : self._known])
        after = self._tokens.decode(self._ids[self._context :])
        self._append(before, after.rstrip(_REPLACEMENT))
        self._context = self._known = len(self._ids)
        return self.text

    def _append(self, before: str, after: str) -> None:
        # A prompt of ids may end within a character, which the continuation completes.
        known = before if after.startswith(before) else before.rstrip(_REPLACEMENT)
        self.text += after[len(known) :]


def _stated_eos_ids(folder: Path) -> list[int]:
    """The ids in a model's configurations, which may name several."""
    found: list[int] = []
    for file in _MODEL_CONFIGS:
        stated = read_object(folder / file).get("eos_token_id")
        found += [each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, int)]
    return found


def longest_pair(tokens: TextTokens, pairs: Sequence[tuple[str, str]]) -> int:
    """The tokens that a model reads for the longest pair; 0 without pairs. The last one is only a target."""
    return max((len(ids) - 1 for ids, _ in encode_pairs(tokens, pairs)), default=0)


def encode_pairs(tokens: TextTokens, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """The ids of each pair, and the index of the continuation's first one.

    As in lm-eval 0.4 (`_encode_pair`), white space at the end of a context belongs to the continuation. The ids are
    those of the context alone, then those of both as one text after as many. Where a tokenizer merges across the
    border, this is neither text exactly.

    Raises:
        DataError: a continuation has no id of its own.
    """
    contexts = tokens.encode([context.rstrip() for context, _ in pairs])
    whole = tokens.encode([context + continuation for context, continuation in pairs])
    encoded = [
        ([*before, *ids[len(before) :]], len(before)) if before else ([tokens.start_id, *ids], 1)
        for before, ids in zip(contexts, whole, strict=True)
    ]
    for place, (ids, first) in enumerate(encoded):
        if len(ids) <= first:
            raise DataError(
                f"the pair at place {place} has no token of its own for the continuation {pairs[place][1]!r}; correct "
                "the item"
            )
    return encoded
