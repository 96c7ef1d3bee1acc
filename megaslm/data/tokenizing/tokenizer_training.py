"""A SentencePiece model trained on a recipe's own training text."""

import heapq
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sentencepiece import SentencePieceTrainer

from megaslm.config.recipe import Recipe, TrainSentencePiece
from megaslm.data.text.documents import hash_of
from megaslm.data.text.task_reader import TaskReader
from megaslm.data.text.tasks import Task, split_of
from megaslm.errors import DataError

_CHUNK_CHARACTERS = 2048
_LONGEST_CHUNK_BYTES = 4 * _CHUNK_CHARACTERS


def train_sentencepiece(recipe: Recipe, settings: TrainSentencePiece, tasks: Iterable[Task]) -> bytes:
    """A model file's content, trained on the training text of a recipe.

    Raises DataError where the text is too small for the vocabulary.
    """
    return train_on(_training_texts(recipe, settings, tasks), settings)


def train_on(texts: Iterable[str], settings: TrainSentencePiece) -> bytes:
    """A model file's content: BPE that can encode any text and decode it back.

    The same texts, in any order, give the same model on any machine. Raises DataError where they are too small for the
    vocabulary.
    """
    sample = _Sample(settings.sample_bytes)
    for text in texts:
        sample.offer(text)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(chunk for text in sample.texts() for chunk in _chunks(text)),
            model_writer=model,
            model_type="bpe",
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=_LONGEST_CHUNK_BYTES,
            # One thread, because the number of threads is written into the model.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"cannot train a tokenizer of {settings.vocab_size} pieces on {sample.bytes} bytes "
            f"of text: {error}; lower tokenizer.train_sentencepiece.vocab_size or add text"
        ) from error
    return model.getvalue()


def _training_texts(recipe: Recipe, settings: TrainSentencePiece, tasks: Iterable[Task]) -> Iterator[str]:
    wanted = settings.domains or recipe.domains
    for task in tasks:
        if not set(wanted).isdisjoint(task.source.domain_names):
            for document in TaskReader(task).documents():
                if document.domain in wanted and split_of(document, recipe) == "train":
                    yield document.text


@dataclass
class _Sample:
    """The texts of smallest hash that fit into so many bytes: a fair sample in one pass and bounded memory."""

    most_bytes: int
    bytes: int = 0
    _heap: list[tuple[int, str]] = field(default_factory=list)

    def offer(self, text: str) -> None:
        heapq.heappush(self._heap, (-hash_of("tokenizer", text), text))
        self.bytes += len(text.encode("utf-8"))
        while self.bytes > self.most_bytes and len(self._heap) > 1:
            self.bytes -= len(heapq.heappop(self._heap)[1].encode("utf-8"))

    def texts(self) -> list[str]:
        return [text for _, text in sorted(self._heap, reverse=True)]


def _chunks(text: str) -> Iterator[str]:
    """Pieces of a text that end at a line's end where they can; the trainer leaves out what is longer."""
    chunk = ""
    for line in text.splitlines(keepends=True):
        if chunk and len(chunk) + len(line) > _CHUNK_CHARACTERS:
            yield chunk
            chunk = ""
        chunk += line
        while len(chunk) > _CHUNK_CHARACTERS:
            yield chunk[:_CHUNK_CHARACTERS]
            chunk = chunk[_CHUNK_CHARACTERS:]
    if chunk:
        yield chunk
