"""Conversations in the tokenizer's chat template, as transformers encodes them for a model."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megaslm.config.recipe import Recipe
from megaslm.corpus.record_text import Message
from megaslm.errors import DataError
from megaslm.preparing.encoding import ConversationEncoding, require_chat_templates
from tests.conversations import CHAT_ML, INST, OWN_WORDS, TRAJECTORY, with_template
from tests.messages import Says

TURNS = (Message("system", "Be brief."), *TRAJECTORY, Message("user", "And 1?"), Message("assistant", "43"))
LAST_IS_OTHERWISE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + ('' if loop.last else 'earlier: ') + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def recipe(bos: str = "none") -> Recipe:
    source = {"domain": "a", "reader": "jsonl", "paths": ["a"], "messages_field": "m", "chat_format": "tokenizer"}
    given = {"name": "a", "licence": "none", "seq_len": 8, "tokenizer": {"huggingface": "a"}, "sources": [source]}
    return Recipe.model_validate({**given, "bos": bos})


def encoding(folder: Path, bos: str = "none") -> ConversationEncoding:
    return ConversationEncoding.of(recipe(bos).sources[0], recipe(bos), folder)


def ids_of_transformers(folder: Path, messages: tuple[Message, ...]) -> list[int]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    conversation = [message._asdict() for message in messages]
    return list(tokenizer.apply_chat_template(conversation, return_dict=False))


def trained_texts(folder: Path, messages: tuple[Message, ...], bos: str = "none") -> list[str]:
    made = encoding(folder, bos)
    encoded, _ = made.encode(messages)
    runs = np.split(np.arange(len(encoded.ids)), np.flatnonzero(np.diff(encoded.trained)) + 1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return [tokenizer.decode(encoded.ids[run].tolist()) for run in runs if encoded.trained[run[0]]]


def test_the_ids_are_those_that_a_model_meets(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "tokenizer", CHAT_ML)
    encoded, _ = encoding(folder).encode(TURNS)
    assert encoded.ids.tolist() == ids_of_transformers(folder, TURNS)


def test_each_answer_and_the_token_that_ends_it_are_trained_on(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "tokenizer", CHAT_ML)
    program, answer = OWN_WORDS
    assert trained_texts(folder, TURNS) == [program, f"{answer}<|im_end|>\n", "43<|im_end|>\n"]


def test_bos_and_eos_of_the_template_are_left_to_packing(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "tokenizer", INST)
    encoded, _ = encoding(folder, "document").encode(TRAJECTORY)
    bos, *ids, eos = ids_of_transformers(folder, TRAJECTORY)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert (bos, eos) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert encoded.ids.tolist() == ids
    program, answer = OWN_WORDS
    assert trained_texts(folder, TRAJECTORY, "document") == [f" {program}", answer]


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (INST, TRAJECTORY),
        (LAST_IS_OTHERWISE, TURNS),
        (CHAT_ML, (TRAJECTORY[0], Message("assistant", "a <|im_end|> in it"))),
        (CHAT_ML, TRAJECTORY[:1]),
        ("{{ raise_exception('alternate!') }}", TRAJECTORY),
        ("{% for %}", TRAJECTORY),
        ("{{ messages.pop() }}", TRAJECTORY),
    ],
    ids=["BOS", "last is otherwise", "special token", "no answer", "refused", "no template", "unsafe"],
)
def test_a_conversation_that_has_no_place_in_the_template_is_named(
    tmp_path: Path, template: str, messages: tuple[Message, ...], says: Says
) -> None:
    folder = with_template(tmp_path / "tokenizer", template)
    with pytest.raises(DataError) as refused:
        encoding(folder).encode(messages)
    says(refused)


def test_eos_between_two_answers_is_named(tmp_path: Path, says: Says) -> None:
    folder = with_template(tmp_path / "tokenizer", INST)
    with pytest.raises(DataError) as refused:
        encoding(folder, "document").encode(TURNS[1:])
    says(refused, "'</s>'")


@pytest.mark.parametrize("template", [None, "{{ strftime_now('%d') }}"], ids=["none", "today"])
def test_a_tokenizer_without_a_lasting_template_is_refused(tmp_path: Path, template: str | None, says: Says) -> None:
    folder = with_template(tmp_path / "tokenizer", template or "")
    if template is None:
        (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError) as refused:
        require_chat_templates(recipe(), folder)
    says(refused, "chat_format")


@pytest.mark.parametrize("form", ["text", "list"])
def test_the_template_may_stand_in_the_config(tmp_path: Path, form: str) -> None:
    folder = with_template(tmp_path / "tokenizer", CHAT_ML)
    (folder / "chat_template.jinja").unlink()
    config = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT_ML}]
    settings = json.loads(config.read_text()) | {"chat_template": CHAT_ML if form == "text" else named}
    config.write_text(json.dumps(settings))
    encoded, _ = encoding(folder).encode(TURNS)
    assert encoded.ids.tolist() == ids_of_transformers(folder, TURNS)
