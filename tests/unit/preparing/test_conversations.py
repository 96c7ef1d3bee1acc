"""Which characters and tokens of a conversation are trained on."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaslm.corpus.record_text import Message, messages_of
from megaslm.errors import DataError
from megaslm.preparing.conversations import Conversation, in_tora_format
from megaslm.tokenizer.token_places import PlacingEncoder
from megaslm.tokenizer.tokenizer import FolderEncoder
from tests.conversations import FOLDERS, OWN_WORDS, QUESTION, TEXT, TRAJECTORY
from tests.messages import Says


def trained_texts(conversation: Conversation) -> tuple[str, ...]:
    return tuple(conversation.text[span.start : span.stop] for span in conversation.trained)


def answered(*answers: str) -> Conversation:
    turns = [(Message("user", " a question\n"), Message("assistant", answer)) for answer in answers]
    return in_tora_format([message for turn in turns for message in turn])


def test_prompts_and_outputs_of_tools_are_not_trained_on() -> None:
    conversation = in_tora_format(TRAJECTORY)
    assert conversation.text == TEXT
    assert trained_texts(conversation) == OWN_WORDS


@pytest.mark.parametrize(
    ("answer", "own"),
    [
        ("No program.", ("No program.",)),
        ("```python\n1\n```\n```output\n```\nNothing.", ("```python\n1\n```\n```output", "Nothing.")),
        ("```output\n1\n\n2\n```\n```python\n3\n```\n```output\n4\n```", ("```output", "```python\n3\n```\n```output")),
        ("```output\n1\n```\n```output\n2\n```\nTwo.", ("```output", "```output", "Two.")),
        ("Cut off:\n```output\n1\nand no fence", ("Cut off:\n```output",)),
        ("Handed over:\n```output", ("Handed over:\n```output",)),
        ("```output\r\n1\r\n```\r\nWindows.", ("```output", "Windows.")),
        ("A ```output``` within a line\n```outputs\n1\n```", ("A ```output``` within a line\n```outputs\n1\n```",)),
        ("", ()),
    ],
)
def test_a_block_of_output_is_the_tools_up_to_the_line_below_it(answer: str, own: tuple[str, ...]) -> None:
    conversation = answered(answer)
    assert conversation.text == f"<|user|>\na question\n<|assistant|>\n{answer}"
    assert trained_texts(conversation) == own


def test_each_answer_is_trained_on_and_what_no_answer_follows_is_left_out() -> None:
    messages = [Message("system", "Be brief."), *TRAJECTORY, Message("user", "And 1?"), Message("assistant", "43")]
    conversation = in_tora_format([*messages, Message("user", "Thanks.")])
    assert conversation.text == f"<|system|>\nBe brief.\n{TEXT}\n<|user|>\nAnd 1?\n<|assistant|>\n43"
    assert trained_texts(conversation) == (*OWN_WORDS, "43")


def test_what_cannot_be_trained_on_is_named(says: Says) -> None:
    with pytest.raises(DataError) as refused:
        in_tora_format([TRAJECTORY[0], Message("tool", "42"), TRAJECTORY[1]])
    says(refused, "message 2", "'tool'")
    with pytest.raises(DataError) as refused:
        in_tora_format(TRAJECTORY[:1])
    says(refused)


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer") / "folder"
    FOLDERS[request.param](made)
    return made


def test_a_trajectorys_trained_tokens_are_the_assistants_words(folder: Path) -> None:
    conversation, encoder = in_tora_format(TRAJECTORY), PlacingEncoder(folder)
    tokens = encoder.encode(conversation.text)
    trained = conversation.trained_tokens(tokens.starts)
    decode = FolderEncoder(folder).decode
    assert np.array_equal(tokens.ids, FolderEncoder(folder).encode([conversation.text])[0])
    runs = np.split(np.arange(len(trained)), np.flatnonzero(np.diff(trained)) + 1)
    assert tuple(decode(tokens.ids[run]) for run in runs if trained[run[0]]) == OWN_WORDS
    prompt = decode(tokens.ids[runs[0]])
    assert prompt.strip() == f"<|user|>\n{QUESTION}\n<|assistant|>"


# A rare character is spelled in several tokens, and a line of spaces may be one token with its end.
PIECES = [*"ab12 \n`_", "é", "鿿", "🙂", "```output\n", "\n```\n"]
ANSWERS = st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), min_size=1, max_size=3)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_token_belongs_to_the_side_on_which_it_begins(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("tokenizer") / "folder"
    FOLDERS[name](made)
    encoder, decode = PlacingEncoder(made), FolderEncoder(made).decode

    @settings(max_examples=150, deadline=None)
    @given(ANSWERS)
    def check(answers: list[str]) -> None:
        conversation = answered(*answers)
        is_own = np.zeros(len(conversation.text) + 1, dtype=np.bool_)
        for span in conversation.trained:
            is_own[span.start : span.stop] = True
        tokens = encoder.encode(conversation.text)
        trained = conversation.trained_tokens(tokens.starts)
        assert np.array_equal(trained, is_own[tokens.starts])
        # The characters that trained tokens begin with and hold, up to the start of the next token.
        stops = np.append(tokens.starts[1:], len(conversation.text))
        held = "".join(conversation.text[a:b] for a, b in zip(tokens.starts[trained], stops[trained], strict=True))
        own = "".join(conversation.text[span.start : span.stop] for span in conversation.trained)
        ends_at_bounds = np.isin([span.stop for span in conversation.trained], stops).all()
        begins_at_bounds = np.isin([span.start for span in conversation.trained], tokens.starts).all()
        if ends_at_bounds and begins_at_bounds:
            assert held == own
            assert decode(tokens.ids[trained]).strip() == own.strip()

    check()


def own_lines(answer: str) -> str:
    """The assistant's words, by going through the lines."""
    own, is_tools = "", False
    for line in answer.strip().splitlines(keepends=True):
        if is_tools:
            is_tools = line.rstrip() != "```"
        elif line.rstrip() == "```output":
            own += line.rstrip()
            is_tools = True
        else:
            own += line
    return own


def test_the_trained_tokens_of_real_trajectories_are_the_assistants_words(tmp_path: Path) -> None:
    shared = os.environ.get("MEGASLM_SHARED_DATA")
    if not shared:
        pytest.skip("MEGASLM_SHARED_DATA is not set")
    lines = (Path(shared) / "trajectories" / "tora_examples.jsonl").read_text(encoding="utf-8").splitlines()
    FOLDERS["byte level"](tmp_path / "tokenizer")
    encoder, decode = PlacingEncoder(tmp_path / "tokenizer"), FolderEncoder(tmp_path / "tokenizer").decode
    read = [messages_of(json.loads(line), "a line", "messages") for line in lines]
    assert len(read) == 30
    for messages in read:
        conversation = in_tora_format(messages)
        tokens = encoder.encode(conversation.text)
        trained = conversation.trained_tokens(tokens.starts)
        assert decode(tokens.ids[trained]) == own_lines(messages[1].content)
        assert decode(tokens.ids) == conversation.text


def test_a_cut_conversation_keeps_its_spans() -> None:
    conversation = Conversation("<s>abc</s>", (range(4, 10),)).cut(3, 10).cut(0, 3)
    assert conversation == Conversation("abc", (range(1, 3),))
    assert Conversation("abc", (range(1),)).cut(1, 3) == Conversation("bc", ())
