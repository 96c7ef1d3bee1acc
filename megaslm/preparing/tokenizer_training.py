"""The tokenizer folder of a dataset: copied from the recipe's tokenizer, or trained on the recipe's text."""

import heapq
import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from megaslm.config.recipe import Recipe, TrainSentencePiece
from megaslm.config.section import home_expanded
from megaslm.corpus.documents import Document, hash_of
from megaslm.corpus.tasks import Task, TaskReader, split_of
from megaslm.errors import DataError
from megaslm.files import abandon_folder, finish_folder, start_folder
from megaslm.preparing.encoding import require_chat_templates
from megaslm.preparing.sentencepiece_original import require_same_ids, texts_to_compare
from megaslm.tokenizer.bos import require_bos
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILES
from megaslm.tokenizer.sentencepiece_export import ORIGINAL, export_sentencepiece
from megaslm.tokenizer.tokenizer import (
    SentencePieceEncoder,
    TokenizerFacts,
    require_tokenizer_folder,
    tokenizer_facts,
)
from megaslm.tokenizer.word_encoder import fastest_encoder

_CHUNK_CHARACTERS = 2048
_LONGEST_CHUNK_BYTES = 4 * _CHUNK_CHARACTERS
_CHECKED_BYTES = 2_000_000
_MOST_CHECKED_TASKS = 64


def train_sentencepiece(recipe: Recipe, settings: TrainSentencePiece, tasks: Iterable[Task]) -> bytes:
    """The content of a model file, trained on the training text of a recipe.

    Raises DataError where the text is too small for the vocabulary.
    """
    return train_on(_training_texts(recipe, settings, tasks), settings)


def train_on(texts: Iterable[str], settings: TrainSentencePiece) -> bytes:
    """The content of a model file: BPE that encodes any text and decodes it back.

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
    """The texts of smallest hash that fit into a number of bytes: an unbiased sample in one pass and bounded memory."""

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
    """Pieces of a text, cut at line ends where possible. The trainer leaves out longer texts."""
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


def make_tokenizer(recipe: Recipe, tasks: Sequence[Task], folder: Path) -> None:
    """Write the recipe's tokenizer to `folder`, which appears only when complete.

    Raises DataError where the tokenizer cannot be read, where the exported one differs from SentencePiece, or where it
    has no BOS for the recipe's `bos` or no chat template for its `chat_format`.
    """
    try:
        filled = start_folder(folder)
        require_bos(recipe.bos, _fill(recipe, tasks, filled))
        require_chat_templates(recipe, filled)
        finish_folder(folder)
    except BaseException:
        abandon_folder(folder)
        raise


def _fill(recipe: Recipe, tasks: Sequence[Task], folder: Path) -> TokenizerFacts:
    section = recipe.tokenizer
    if section.huggingface is not None:
        return _copy(home_expanded(section.huggingface), folder)
    if section.train_sentencepiece is not None:
        model = train_sentencepiece(recipe, section.train_sentencepiece, tasks)
    else:
        model = _read_model(home_expanded(section.sentencepiece or ""))
    export_sentencepiece(model, folder)
    if texts_to_compare(model) is not None:
        (folder / ORIGINAL).write_bytes(model)
    require_same_ids(SentencePieceEncoder(model), fastest_encoder(folder), _sample(tasks))
    return tokenizer_facts(folder)


def _copy(source: Path, folder: Path) -> TokenizerFacts:
    require_tokenizer_folder(source)
    # Messages about the tokenizer name the user's folder.
    facts = tokenizer_facts(source)
    for name in (*TOKENIZER_FILES, ORIGINAL):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return facts


def _read_model(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(
            f"tokenizer.sentencepiece: {path} is not a file; name the model file itself, such as tokenizer.model"
        )
    model = path.read_bytes()
    try:
        SentencePieceEncoder(model)
    except DataError as error:
        raise DataError(f"tokenizer.sentencepiece: {path}: {error}; copy the file again") from error
    return model


def _sample(tasks: Sequence[Task]) -> Iterator[Document]:
    """The first documents of evenly spread tasks, up to about the number of bytes worth checking."""
    chosen = tasks[:: -(-len(tasks) // _MOST_CHECKED_TASKS)]
    for task in chosen:
        size = 0
        for document in TaskReader(task).documents():
            yield document
            size += len(document.text)
            if size >= _CHECKED_BYTES // len(chosen):
                break
