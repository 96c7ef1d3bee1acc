"""Documents as token ids, and which of the tokens are trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.config.recipe import Recipe, Source
from megaslm.corpus.documents import Document
from megaslm.corpus.record_text import Message
from megaslm.errors import DataError
from megaslm.preparing.chat_template import ChatTemplate
from megaslm.preparing.conversations import Conversation, in_template, in_tora_format
from megaslm.preparing.sentencepiece_original import Original
from megaslm.tokenizer.folder_tokens import named_tokens
from megaslm.tokenizer.token_places import PlacingEncoder
from megaslm.tokenizer.tokenizer import TextEncoder, TokenizerFacts
from megaslm.tokenizer.word_encoder import fastest_encoder


class EncodedDocument(NamedTuple):
    """The tokens of one document, without BOS and EOS."""

    ids: NDArray[np.uint32]
    """(tokens,)"""
    trained: NDArray[np.bool_]
    """(tokens,), false where a conversation excludes a token."""


@lru_cache(maxsize=1)
def encoder_of(tokenizer: Path, sha256: str) -> TextEncoder:
    """The encoder of a tokenizer folder. It is cached, with its memory, while the folder holds the same tokenizer."""
    return fastest_encoder(tokenizer)


@lru_cache(maxsize=1)
def _original_of(tokenizer: Path, sha256: str) -> Original | None:
    return Original.of(tokenizer)


@dataclass(frozen=True)
class DocumentEncoding:
    """How the documents of one source are encoded."""

    texts: TextEncoder
    original: Original | None
    """The SentencePiece model that the ids of texts must agree with."""
    conversations: "ConversationEncoding | None"
    """None for a source whose documents are texts."""
    marks: tuple["_Mark", ...]
    """The tokens that no document may hold."""

    @classmethod
    def of(cls, recipe: Recipe, facts: TokenizerFacts, tokenizer: Path, source: Source) -> "DocumentEncoding":
        """The encoding of documents of `source` by the tokenizer in the folder `tokenizer`."""
        return cls(
            encoder_of(tokenizer, facts.sha256),
            _original_of(tokenizer, facts.sha256),
            None if source.chat_format is None else ConversationEncoding.of(source, recipe, tokenizer),
            tuple(_marks(recipe, facts)),
        )

    def encode(self, documents: Sequence[Document]) -> list[EncodedDocument]:
        """The ids of each document. None is EOS, and none is BOS where rows have BOS.

        Raises DataError, naming the document, for text that cannot be encoded.
        """
        if self.conversations is None:
            ids = self._ids_of_texts(documents)
            encoded = [EncodedDocument(each, np.ones(each.shape, dtype=np.bool_)) for each in ids]
        else:
            encoded = [self._conversation(document) for document in documents]
        for mark in self.marks:
            # Check the whole batch at once, because most batches have none.
            if (np.concatenate([each.ids for each in encoded]) == mark.id).any():
                for document, each in zip(documents, encoded, strict=True):
                    _require_none(document, each.ids, mark, self.texts)
        return encoded

    def _ids_of_texts(self, documents: Sequence[Document]) -> list[NDArray[np.uint32]]:
        try:
            encoded = self.texts.encode([document.text for document in documents])
        except DataError:
            for document in documents:
                _require_encodable(document, self.texts)
            raise
        for document, ids in zip(documents, encoded, strict=True):
            self._require_original(document, ids)
        return encoded

    def _conversation(self, document: Document) -> EncodedDocument:
        assert self.conversations is not None  # its source has conversations
        try:
            encoded, text = self.conversations.encode(document.messages)
        except DataError as error:
            raise DataError(f"{document.location}: {error}") from error
        if self.conversations.template is None:
            self._require_original(replace(document, text=text), encoded.ids)
        return encoded

    def _require_original(self, document: Document, ids: NDArray[np.uint32]) -> None:
        if self.original is not None:
            self.original.require_same(document, ids, self.texts)


@dataclass(frozen=True)
class ConversationEncoding:
    """How the conversations of one source are encoded."""

    encoder: PlacingEncoder
    template: ChatTemplate | None
    """The tokenizer's template; None for ToRA's format."""
    bos: str
    """The name of the BOS token; empty where the tokenizer has none."""
    eos: str
    """The name of the EOS token."""
    has_bos: bool
    """Whether rows have BOS before each document."""

    @classmethod
    def of(cls, source: Source, recipe: Recipe, tokenizer: Path) -> "ConversationEncoding":
        """The encoding by the tokenizer in the folder `tokenizer`. Raises DataError where it lacks a template."""
        template = ChatTemplate.of(tokenizer) if source.chat_format == "tokenizer" else None
        names = named_tokens(tokenizer)
        return cls(
            # In ToRA's format no text gives a special token. In a template special tokens mark the turns.
            PlacingEncoder(tokenizer, special_tokens=template is not None),
            template,
            names.get("bos_token", ""),
            names.get("eos_token", ""),
            recipe.bos == "document",
        )

    def encode(self, messages: Sequence[Message]) -> tuple[EncodedDocument, str]:
        """The tokens of a conversation and its text, which is encoded as a whole, as a model meets it."""
        conversation = in_tora_format(messages) if self.template is None else self._in_template(messages, self.template)
        placed = self.encoder.encode(conversation.text)
        return EncodedDocument(placed.ids, conversation.trained_tokens(placed.starts)), conversation.text

    def _in_template(self, messages: Sequence[Message], template: ChatTemplate) -> Conversation:
        """The conversation without the BOS and the EOS around it, which packing adds."""
        for number, message in enumerate(messages, start=1):
            spelled = (name for name in self.encoder.special_names if name in message.content or name in message.role)
            if found := next(spelled, None):
                raise DataError(
                    f"message {number} spells {found!r}, which the tokenizer would read as the special token; write it "
                    "otherwise, or leave the record out"
                )
        conversation = in_template(messages, template)
        if self.bos and conversation.text.startswith(self.bos):
            if not self.has_bos:
                raise DataError(
                    f"the tokenizer's chat template begins with BOS, {self.bos!r}; set bos: document, which puts it "
                    "there"
                )
            conversation = conversation.cut(len(self.bos), len(conversation.text))
        ended = conversation.text.rstrip()
        if self.eos and ended.endswith(self.eos):
            conversation = conversation.cut(0, len(ended) - len(self.eos))
        if self.eos and self.eos in conversation.text:
            raise DataError(
                f"the tokenizer's chat template writes EOS, {self.eos!r}, inside the conversation, which would cut it "
                "in two; set eos_token in the tokenizer's tokenizer_config.json to a token that only ends texts, set "
                "chat_format: tora, or leave only the first answer in the record"
            )
        return conversation


def require_chat_templates(recipe: Recipe, tokenizer: Path) -> None:
    """Raise DataError where a source needs a chat template that the tokenizer's folder lacks."""
    if any(source.chat_format == "tokenizer" for source in recipe.sources):
        ChatTemplate.of(tokenizer)


def _require_encodable(document: Document, encoder: TextEncoder) -> None:
    try:
        encoder.encode([document.text])
    except DataError as error:
        raise DataError(f"{document.location}: {error}") from error


@dataclass(frozen=True)
class _Mark:
    """A token that marks the bounds of documents or rows, so that no text may give it."""

    id: int
    name: str
    """Its role, EOS or BOS."""
    refusal: str
    """What is wrong with it inside a document, and what to do."""


def _marks(recipe: Recipe, facts: TokenizerFacts) -> Iterator[_Mark]:
    """EOS and, where rows have BOS, BOS."""
    another = "in the tokenizer's tokenizer_config.json to a token that no text gives"
    without = "leave such documents out with a filter"
    yield _Mark(facts.eos_id, "EOS", f"which would cut the document in two; set eos_token {another}, or {without}")
    bos = recipe.bos
    if bos != "none" and facts.bos_id is not None:
        yield _Mark(
            facts.bos_id,
            "BOS",
            f"which `bos: {bos}` allows only before a {bos}; set bos_token {another}, {without}, or set bos: none",
        )


def _require_none(document: Document, ids: NDArray[np.uint32], mark: _Mark, encoder: TextEncoder) -> None:
    places = np.flatnonzero(ids == mark.id)
    if places.size:
        name = encoder.decode(np.array([mark.id], dtype=np.uint32))
        raise DataError(
            f"{document.location}: token {places[0]} of the text is {mark.id}, {name!r}, the {mark.name} token, "
            f"{mark.refusal}"
        )
