"""The tokenizer folder of a dataset, from whichever origin the recipe names."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from megaslm.config.home import home_expanded
from megaslm.config.recipe import Recipe
from megaslm.data.text.documents import Document
from megaslm.data.text.task_reader import TaskReader
from megaslm.data.text.tasks import Task
from megaslm.data.tokenizing.folder_tokens import TOKENIZER_FILES
from megaslm.data.tokenizing.sentencepiece_export import ORIGINAL, export_sentencepiece
from megaslm.data.tokenizing.sentencepiece_original import doubtful_texts, require_same_ids
from megaslm.data.tokenizing.tokenizer import SentencePieceEncoder, tokenizer_facts
from megaslm.data.tokenizing.tokenizer_training import train_sentencepiece
from megaslm.data.tokenizing.word_encoder import fastest_encoder
from megaslm.errors import DataError
from megaslm.jobs.durable import abandon_folder, finish_folder, start_folder

_CHECKED_BYTES = 2_000_000
_MOST_CHECKED_TASKS = 64


def make_tokenizer(recipe: Recipe, tasks: Sequence[Task], folder: Path) -> None:
    """Write the recipe's tokenizer to `folder`, which appears when it is complete.

    Raises DataError where the tokenizer cannot be read, or where the exported one does not do as SentencePiece does.
    """
    try:
        _fill(recipe, tasks, start_folder(folder))
        finish_folder(folder)
    except BaseException:
        abandon_folder(folder)
        raise


def _fill(recipe: Recipe, tasks: Sequence[Task], folder: Path) -> None:
    origin = recipe.tokenizer
    if origin.huggingface is not None:
        _copy(home_expanded(origin.huggingface), folder)
        return
    if origin.train_sentencepiece is not None:
        model = train_sentencepiece(recipe, origin.train_sentencepiece, tasks)
    else:
        model = _read_model(home_expanded(origin.sentencepiece or ""))
    export_sentencepiece(model, folder)
    if doubtful_texts(model) is not None:
        (folder / ORIGINAL).write_bytes(model)
    require_same_ids(SentencePieceEncoder(model), fastest_encoder(folder), _sample(tasks))


def _copy(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise DataError(f"tokenizer.huggingface: {source} is not a folder")
    tokenizer_facts(source)
    for name in (*TOKENIZER_FILES, ORIGINAL):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _read_model(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(
            f"tokenizer.sentencepiece: {path} is not a file; name the model itself, as a folder's tokenizer.model"
        )
    model = path.read_bytes()
    try:
        SentencePieceEncoder(model)
    except DataError as error:
        raise DataError(f"tokenizer.sentencepiece: {path}: {error}; copy the file again") from error
    return model


def _sample(tasks: Sequence[Task]) -> Iterator[Document]:
    """The first documents of tasks spread over all of them, together about as many bytes as are worth checking."""
    chosen = tasks[:: -(-len(tasks) // _MOST_CHECKED_TASKS)]
    for task in chosen:
        size = 0
        for document in TaskReader(task).documents():
            yield document
            size += len(document.text)
            if size >= _CHECKED_BYTES // len(chosen):
                break
