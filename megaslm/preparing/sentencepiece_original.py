"""The SentencePiece model behind an exported tokenizer, and the texts in which the two may differ.

An exported tokenizer is trusted where the model proves it equal: it merges or weighs the same pieces of the same
characters. Elsewhere SentencePiece itself encodes each document, and a document with other ids is refused. Storing
SentencePiece's ids instead would only move the difference, because the exported tokenizer encodes prompts later.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as proto

from megaslm.corpus.documents import Document
from megaslm.errors import DataError
from megaslm.tokenizer.sentencepiece_export import ANGLE, ORIGINAL, SPACE
from megaslm.tokenizer.tokenizer import SentencePieceEncoder, TextEncoder

_Piece = proto.ModelProto.SentencePiece
_ANY_TEXT = ""
_SHOWN_IDS = 8
# Characters that Unicode never joins with a neighbour of these ranges into one visible character.
_PLAIN = (
    "\t\n -~\u00a0-\u00ac\u00ae-\u02ff\u0370-\u0377\u037a-\u0482\u048a-\u052f\u1e00-\u1eff\u2010-\u2027\u2030-\u205e"
)
_PLAIN += "\u20a0-\u20bf\u2100-\u2580\u2582-\u2bff\u3000-\u3029\u3030-\u303f\u3041-\u3096\u309b-\u30ff\u3400-\u9fff"
_PLAIN += "\uac00-\ud7a3\uff01-\uff9d"
_LABELS = np.arange(1, 256, dtype=np.uint32)


class Original:
    """The model that an exported tokenizer must agree with."""

    def __init__(self, model: bytes, doubtful: re.Pattern[str]) -> None:
        """`model` is a model file's content. `doubtful` is found in every text in which the two may differ."""
        self._sentencepiece = SentencePieceEncoder(model)
        self._doubtful = doubtful
        # From space to space, both included: a normaliser may join characters with a space.
        self._words = re.compile(f" ?[^ ]*(?:{doubtful.pattern})[^ ]* ?") if _has_words(model) else None

    @classmethod
    def of(cls, folder: Path) -> "Original | None":
        """The model of a tokenizer's folder, None if it has none because every text has the same ids."""
        path = folder / ORIGINAL
        model = path.read_bytes() if path.is_file() else None
        doubtful = None if model is None else texts_to_compare(model)
        return None if model is None or doubtful is None else cls(model, doubtful)

    def require_same(self, document: Document, found: NDArray[np.uint32], exported: TextEncoder) -> None:
        """Raise DataError where a document's ids `found`, from `exported`, are not SentencePiece's."""
        if not self._doubtful.search(document.text):
            return
        if self._words is not None:
            words = " ".join(self._words.findall(document.text))
            (wanted,), (of_words,) = self._sentencepiece.encode([words]), exported.encode([words])
            if np.array_equal(wanted, of_words):
                return
        _require_same(self._sentencepiece, exported, document, found)


def require_same_ids(expected: SentencePieceEncoder, exported: TextEncoder, documents: Iterable[Document]) -> None:
    """Raise DataError, naming the first document, unless both give the same ids and decode them to the same text."""
    for document in documents:
        (found,) = exported.encode([document.text])
        _require_same(expected, exported, document, found)


def _require_same(
    expected: SentencePieceEncoder, exported: TextEncoder, document: Document, found: NDArray[np.uint32]
) -> None:
    (wanted,) = expected.encode([document.text])
    if not np.array_equal(wanted, found) and not expected.is_tie(wanted, found):
        common = min(wanted.size, found.size)
        first = int(np.argmax(np.append(wanted[:common] != found[:common], True)))
        beginning = exported.decode(found[first : first + _SHOWN_IDS])
        raise DataError(
            f"{document.location}: from token {first} on, at {beginning!r}, the exported tokenizer gives "
            f"{_ids(found, first)}, SentencePiece {_ids(wanted, first)}: no Hugging Face tokenizer reads this text as "
            "the model does; where its characters combine, write it in Unicode's NFKC with \\n as its line ends; else "
            "leave it out with a filter, or give a Hugging Face folder as `tokenizer.huggingface`"
        )
    if not expected.has_unknown(wanted) and expected.decode(wanted) != exported.decode(found):
        raise DataError(
            f"{document.location}: the exported tokenizer decodes the text differently than SentencePiece; leave such "
            "documents out with a filter, or give a Hugging Face folder as `tokenizer.huggingface`"
        )


def _ids(ids: np.ndarray, first: int) -> list[int]:
    return ids[first : first + _SHOWN_IDS].tolist()


def texts_to_compare(model: bytes) -> re.Pattern[str] | None:
    """A pattern found in every text to which the exported tokenizer of `model` may give other ids; None for no text."""
    description = proto.ModelProto.FromString(model)
    is_unigram = description.trainer_spec.model_type == description.trainer_spec.UNIGRAM
    spec = description.normalizer_spec
    user_defined = [piece.piece for piece in description.pieces if piece.type == _Piece.USER_DEFINED]
    uncertain = [re.escape(name) for name in (*user_defined, *(name.replace(SPACE, " ") for name in user_defined))]
    if is_unigram:
        # The exported vocabulary has these names among its pieces. Only a "<" keeps text from spelling them.
        uncertain += [re.escape(name) for name in _names(description) if "<" not in name]
        uncertain.append(ANGLE)
    elif not _merges_by_score_alone(description):
        uncertain.append(_ANY_TEXT)
    if spec.remove_extra_whitespaces:
        uncertain.append(SPACE)
    if not spec.escape_whitespaces:
        uncertain.append(_ANY_TEXT)
    if spec.precompiled_charsmap:
        plain = f"{_PLAIN}\r" if _ends_lines_by_spaces(model) else _PLAIN
        uncertain.append(_ANY_TEXT if _maps_plain_together(spec.precompiled_charsmap) else f"[^{plain}]")
        # The class of characters that are not plain covers these two, and a single class is several times faster.
        uncertain = [each for each in uncertain if each not in (ANGLE, SPACE)]
    return re.compile("|".join(uncertain)) if uncertain else None


def _ends_lines_by_spaces(model: bytes) -> bool:
    """Whether each line end becomes one space, though "\r\n" may count as one character or as two."""
    normalised = SentencePieceProcessor(model_proto=model).normalize(["a\r\nb\rc\nd", "a b c d"])
    return len(set(normalised)) == 1


def _has_words(model: bytes) -> bool:
    """Whether words are encoded independently: a space begins each word, and no piece crosses a space."""
    description = proto.ModelProto.FromString(model)
    spec = description.normalizer_spec
    return (
        spec.escape_whitespaces
        and spec.remove_extra_whitespaces
        and spec.add_dummy_prefix
        and not description.trainer_spec.treat_whitespace_as_suffix
        and not any(SPACE in piece.piece[1:] or piece.type == _Piece.USER_DEFINED for piece in description.pieces)
    )


def _names(description: proto.ModelProto) -> list[str]:
    kinds = (_Piece.CONTROL, _Piece.UNKNOWN, _Piece.BYTE)
    return [piece.piece for piece in description.pieces if piece.type in kinds]


def _merges_by_score_alone(description: proto.ModelProto) -> bool:
    """Whether all scores differ, each piece is built of pieces, and no text spells a special piece's name."""
    normal = [piece for piece in description.pieces if piece.type == _Piece.NORMAL]
    pieces = {piece.piece for piece in normal}
    return (
        len({piece.score for piece in normal}) == len(normal)
        and all(character in pieces for piece in pieces for character in piece)
        and all(len(name) > 1 for name in _names(description))
    )


def _maps_plain_together(charsmap: bytes) -> bool:
    """Whether a normaliser's map replaces several plain characters together.

    The map begins with the size of a trie of the replaced strings. The trie is a double array in which a unit's
    children are at its offset, each xored with its label (Darts-clone).
    """
    units = np.frombuffer(charsmap, dtype=np.uint32, offset=4, count=int.from_bytes(charsmap[:4], "little") // 4)
    plain = re.compile(f"[{_PLAIN}]")
    waiting = [(0, b"")]
    while waiting:
        place, prefix = waiting.pop()
        unit = int(units[place])
        base = np.uint32(place ^ ((unit >> 10) << ((unit & 0x200) >> 6)))
        children = (base ^ _LABELS)[base ^ _LABELS < len(units)]
        for child in children[units[children] & np.uint32(0x800000FF) == children ^ base]:
            longer = prefix + bytes([int(child ^ base)])
            text = longer.decode("utf-8", errors="ignore")
            if all(plain.match(character) for character in text):
                if len(text) > 1:
                    return True
                waiting.append((int(child), longer))
    return False
