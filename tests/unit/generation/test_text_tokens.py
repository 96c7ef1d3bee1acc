"""Prompts become the ids that training had, and ids become text although characters span tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from megaslm.errors import DataError, ModelError
from megaslm.generation.sampling import Prompt
from megaslm.generation.text_tokens import GrowingText, TextTokens
from tests.generating import EOS_ID, TEXT, make_tokenizer
from tests.messages import Says


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TextTokens:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return TextTokens.of_folder(folder)


def sentencepiece_like(folder: Path, *, puts_bos: bool) -> TextTokens:
    """A tokenizer whose decoder strips the space before a text, with bytes as fallback, as Llama's has."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁b", "a", "b"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if puts_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return TextTokens.of_folder(folder)


def grown(tokens: TextTokens, prompt: list[int], ids: list[int]) -> tuple[list[str], str]:
    """The text after each token, and at the end."""
    text = GrowingText(tokens, prompt)
    texts = []
    for token in ids:
        text.add([token])
        texts.append(text.text)
    return texts, text.end()


@given(prompt=st.text(min_size=1, max_size=8), continuation=st.text(max_size=12))
def test_text_is_the_same_token_by_token_and_at_once(tokens: TextTokens, prompt: str, continuation: str) -> None:
    ids = tokens.encode([prompt])[0], tokens.encode([continuation])[0]
    texts, whole = grown(tokens, *ids)
    assert whole == continuation.rstrip("\ufffd")
    assert all(whole.startswith(text) for text in texts)
    text = GrowingText(tokens, ids[0])
    text.add(ids[1])
    assert text.end() == whole


def test_an_incomplete_character_is_left_out(tokens: TextTokens) -> None:
    ids = tokens.encode(["é😀"])[0]
    assert len(ids) == 6
    texts, whole = grown(tokens, tokens.encode(["x"])[0], ids)
    assert texts == ["", "é", "é", "é", "é", "é😀"]
    assert whole == "é😀"
    assert grown(tokens, [], ids[:5])[1] == "é"
    assert grown(tokens, [], ids[:1])[1] == ""


def test_a_continuation_completes_the_prompts_last_character(tokens: TextTokens) -> None:
    ids = tokens.encode(["a😀b"])[0]
    assert grown(tokens, ids[:3], ids[3:])[1] == "😀b"


@pytest.mark.parametrize("puts_bos", [False, True])
def test_the_space_before_a_continuation_is_kept(tmp_path: Path, puts_bos: bool) -> None:
    tokens = sentencepiece_like(tmp_path, puts_bos=puts_bos)
    a, b = (tokens.encode([word])[0][-1] for word in "ab")
    prompt = tokens.encode(["a"])[0]
    assert prompt == ([1, a] if puts_bos else [a])
    assert grown(tokens, prompt, [b, a])[0] == [" b", " b a"]
    assert tokens.decode([a]) == "a"
    assert tokens.start_id == 1
    assert tokens.eos_ids == {2}


def test_every_eos_that_a_file_names_ends_a_text(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    assert TextTokens.of_folder(tmp_path).eos_ids == {EOS_ID}
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert TextTokens.of_folder(tmp_path).eos_ids == {EOS_ID, 7, 8, 9}


def test_names_of_special_tokens_are_text(tokens: TextTokens) -> None:
    ids = tokens.encode(["</s>"])[0]
    assert EOS_ID not in ids
    assert tokens.decode([*ids, EOS_ID]) == "</s>"


def test_texts_and_ids_keep_their_order(tokens: TextTokens) -> None:
    prompts = [Prompt((5, 6), 0), Prompt("the", 1), Prompt((7,), 2), Prompt(TEXT, 3)]
    encoded = tokens.encode_prompts(prompts)
    assert encoded == [[5, 6], tokens.encode(["the"])[0], [7], tokens.encode([TEXT])[0]]


@pytest.mark.parametrize("content", ["", ()], ids=["text", "ids"])
def test_an_empty_prompt_is_refused(tokens: TextTokens, content: str | tuple[int, ...], says: Says) -> None:
    with pytest.raises(DataError) as refused:
        tokens.encode_prompts([Prompt("a", 3), Prompt(content, 4)])
    says(str(refused.value), "place 1", "key 4")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, says: Says) -> None:
    with pytest.raises(ModelError) as refused:
        TextTokens.of_folder(tmp_path)
    says(str(refused.value), str(tmp_path))
