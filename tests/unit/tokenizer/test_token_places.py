"""Where the tokens of a text begin."""

from pathlib import Path

import numpy as np
import pytest

from megaslm.tokenizer.token_places import PlacingEncoder
from megaslm.tokenizer.tokenizer import FolderEncoder
from tests.conversations import FOLDERS, TEXT
from tests.unit.conftest import AWKWARD


@pytest.mark.parametrize("text", [TEXT, *AWKWARD])
def test_ids_are_those_of_documents_and_starts_rise(folder: Path, text: str) -> None:
    tokens = PlacingEncoder(folder).encode(text)
    assert np.array_equal(tokens.ids, FolderEncoder(folder).encode([text])[0])
    assert (np.diff(tokens.starts) >= 0).all()
    assert len(tokens.starts) == len(tokens.ids)


def test_the_tokens_of_one_character_begin_at_it(folder: Path) -> None:
    """鿿 has three bytes and 𝄞 four, which no merge joins."""
    text = "𝄞鿿𝄞"
    tokens = PlacingEncoder(folder).encode(text)
    begun = [np.flatnonzero(tokens.starts == place).size for place in range(3)]
    assert begun[1:] == [3, 4]
    # A tokenizer may put its space before the first character.
    assert begun[0] in (4, 5)


def test_a_token_with_its_space_begins_at_the_space(tmp_path: Path) -> None:
    FOLDERS["byte level"](tmp_path / "tokenizer")
    tokens = PlacingEncoder(tmp_path / "tokenizer").encode("is the")
    assert tokens.starts.tolist()[-1] <= 2
    assert 2 in tokens.starts.tolist()


def test_special_tokens_are_text_unless_asked_for(tmp_path: Path) -> None:
    FOLDERS["byte level"](tmp_path / "tokenizer")
    text = "a<|im_end|>b"
    as_text = PlacingEncoder(tmp_path / "tokenizer").encode(text)
    encoder = PlacingEncoder(tmp_path / "tokenizer", special_tokens=True)
    as_tokens = encoder.encode(text)
    assert len(as_text.ids) > len(as_tokens.ids) == 3
    assert as_tokens.starts.tolist() == [0, 1, 11]
    assert {"<|im_end|>", "</s>"} <= set(encoder.special_names)
