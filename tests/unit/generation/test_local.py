"""A model's completions: the library's own, equal in any batch and order, ended where they should be."""

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from megaslm.errors import GenerationFailed, ModelError, PromptTooLong
from megaslm.generation.local import LocalGenerator
from megaslm.generation.sampling import Completion, Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.decoding import DecodingStep
from megaslm.model.plain_lm import PlainLM
from tests.generating import CONTEXT_TOKENS, EOS_ID, VOCAB_SIZE, generator_of, load, make_folder, prompts_of, texts_of
from tests.messages import Says

SAMPLINGS = [
    Sampling(12),
    Sampling(12, stop=("e", " th")),
    Sampling(12, temperature=1.0),
    Sampling(12, temperature=0.8, top_p=0.9, seed=3, stop=("a", "1")),
    Sampling(1),
    Sampling(1, temperature=1.0),
]
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"num_key_value_heads": 4},
    "qwen3": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
}
TEXTS = ("the answer is", "a", "what is the answer? Answer: 12 + 30 =", "naïve 😀", "two and three")


def _id_of(tokens: TextTokens, byte: int) -> int:
    """Of a byte that may be no character on its own."""
    if byte < 128:
        return tokens.encode([chr(byte)])[0][0]
    followers = {0xC3: ("é", 0), 0xA9: ("é", 1), 0xF0: ("😀", 0), 0x9F: ("😀", 1), 0x98: ("😀", 2), 0x80: ("😀", 3)}
    text, place = followers[byte]
    return tokens.encode([text])[0][place]


def said(folder: Path, text: bytes, sampling: Sampling, *, ends: str = "") -> Completion:
    """Of a model that says `text`, byte by byte, then EOS; its first byte is the prompt. `ends`: another EOS."""
    tokens = TextTokens.of_folder(folder)
    tokens.eos_ids |= {_id_of(tokens, ord(letter)) for letter in ends}
    ids = [*(_id_of(tokens, byte) for byte in text), EOS_ID]

    def next_logits(step: DecodingStep) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(ids)[step.positions[:, -1] + 1], VOCAB_SIZE).float()

    generator = LocalGenerator(next_logits, tokens, context_tokens=CONTEXT_TOKENS, device=torch.device("cpu"))
    (completion,) = generator.generate(prompts_of(chr(text[0])), sampling)
    return completion


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_are_those_of_the_library(family: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, family, **FAMILIES[family])
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = TextTokens.of_folder(folder)
    expected = []
    for ids in tokens.encode(TEXTS):
        made = lm.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=EOS_ID)
        expected.append(tokens.decode(made[0]).rstrip("\ufffd"))
    found = generator_of(folder, batch_rows=3).generate(prompts_of(*TEXTS), Sampling(20))
    assert [text + completion.text for text, completion in zip(TEXTS, found, strict=True)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_batch_do_not_change_one_another(family: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, family, **FAMILIES[family])
    for sampling in SAMPLINGS:
        alone = generator_of(folder, batch_rows=1).generate(prompts_of(*TEXTS), sampling)
        assert generator_of(folder, batch_rows=5).generate(prompts_of(*TEXTS), sampling) == alone


@settings(max_examples=25)
@given(
    texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6),
    batch_rows=st.integers(1, 6),
    sampling=st.sampled_from(SAMPLINGS),
    order=st.randoms(use_true_random=False),
)
def test_any_batch_and_order_gives_equal_completions(
    folder: Path, texts: list[str], batch_rows: int, sampling: Sampling, order: Random
) -> None:
    prompts = prompts_of(*texts)
    alone = [generator_of(folder).generate([prompt], sampling)[0] for prompt in prompts]
    places = list(range(len(prompts)))
    order.shuffle(places)
    seen: dict[int, Completion] = {}
    found = generator_of(folder, batch_rows).generate(
        [prompts[place] for place in places], sampling, finished=seen.__setitem__
    )
    assert found == [alone[place] for place in places]
    assert seen == dict(enumerate(found))


def test_the_key_and_the_seed_decide_what_is_drawn(folder: Path) -> None:
    def drawn(seed: int, *keys: int) -> list[str]:
        sampling = Sampling(12, temperature=1.0, seed=seed)
        return texts_of(generator_of(folder).generate([Prompt("the answer", key) for key in keys], sampling))

    assert drawn(0, 1, 2, 1) == [*drawn(0, 1, 2), *drawn(0, 1)]
    assert len({*drawn(0, 1, 2, 3), *drawn(1, 1, 2, 3)}) == 6


def test_a_text_that_is_continued_later_continues_in_the_same_way(folder: Path) -> None:
    lm, tokens = load(folder)
    ids = tokens.encode(["the answer is"])[0]
    steps: list[DecodingStep] = []

    def next_logits(step: DecodingStep) -> torch.Tensor:
        steps.append(step)
        return lm.next_logits(step)

    generator = LocalGenerator(next_logits, tokens, context_tokens=CONTEXT_TOKENS, device=lm.device)
    (whole,) = generator.generate([Prompt(tuple(ids), 4)], Sampling(10, temperature=1.0))
    first_ids = tuple(ids + [int(step.ids[0, -1]) for step in steps[1:5]])
    (rest,) = generator.generate([Prompt(first_ids, 4)], Sampling(6, temperature=1.0))
    assert whole.text.endswith(rest.text)
    assert rest.tokens == 6


STOPS = [
    (b"a one two three", (" two",), " one", 8, "stop"),
    (b"a one two three", ("three", "o thr"), " one tw", 12, "stop"),
    (b"a one", ("nothing",), " one", 5, "eos"),
    (b"a one", (), " one", 5, "eos"),
    (b"a\n\nQuestion:", ("\n\nQuestion:",), "", 11, "stop"),
    (b"a", ("b",), "", 1, "eos"),
    (b"a", (), "", 1, "eos"),
    ("aé".encode(), ("é",), "", 2, "stop"),
]


@pytest.mark.parametrize(("spoken", "stop", "text", "tokens", "ended"), STOPS)
def test_stop_strings_may_span_tokens(
    folder: Path, spoken: bytes, stop: tuple[str, ...], text: str, tokens: int, ended: str
) -> None:
    assert said(folder, spoken, Sampling(40, stop=stop)) == Completion(text, tokens, ended)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", [(), ("y",)])
def test_an_eos_that_is_no_special_token_is_not_in_the_text(folder: Path, stop: tuple[str, ...]) -> None:
    """Such as one that only generation_config.json names."""
    assert said(folder, b"a one.two", Sampling(20, stop=stop), ends=".") == Completion(" one", 5, "eos")


def test_a_cut_within_a_character_leaves_it_out(folder: Path) -> None:
    text = "a😀é".encode()
    found = [said(folder, text, Sampling(count)).text for count in range(1, 9)]
    assert found == ["", "", "", "😀", "😀", "😀é", "😀é", "😀é"]
    assert said(folder, text, Sampling(3, stop=("x",))) == Completion("", 3, "length")
    assert said(folder, text, Sampling(7)).ended == "eos"


def test_a_prompt_that_leaves_too_little_of_the_context_is_refused(folder: Path, says: Says) -> None:
    prompts = [Prompt(tuple([5] * length), length) for length in (8, 9, 30, 7)]
    generator = generator_of(folder)
    seen: list[int] = []
    sampling = Sampling(CONTEXT_TOKENS - 8)
    with pytest.raises(PromptTooLong) as refused:
        generator.generate(prompts, sampling, finished=lambda place, _: seen.append(place))
    assert refused.value.places == [1, 2]
    assert seen == []
    says(str(refused.value), "key 30", "120", "128")
    assert len(generator.generate([prompts[0], prompts[3]], sampling)) == 2


def test_a_model_without_embeddings_for_all_ids_is_refused(tmp_path: Path, says: Says) -> None:
    folder = make_folder(tmp_path, vocab_size=VOCAB_SIZE - 40)
    with pytest.raises(ModelError) as refused:
        generator_of(folder)
    says(str(refused.value), str(VOCAB_SIZE - 40))


def test_nan_in_the_weights_is_said(tmp_path: Path, says: Says) -> None:
    folder = make_folder(tmp_path)
    lm, tokens = load(folder)
    with torch.no_grad():
        lm._lm.model.norm.weight[3] = torch.nan
    with pytest.raises(GenerationFailed) as failed:
        LocalGenerator.of(lm, tokens).generate(prompts_of("a", "b"), Sampling(4))
    says(str(failed.value), "place 0")


def test_a_lack_of_memory_shows_at_the_first_and_longest_batch(folder: Path, says: Says) -> None:
    _, tokens = load(folder)
    widths: list[tuple[int, ...]] = []

    def next_logits(step: DecodingStep) -> torch.Tensor:
        widths.append(tuple(step.ids.shape))
        raise torch.OutOfMemoryError("tried to allocate 4 GiB")

    generator = LocalGenerator(
        next_logits, tokens, context_tokens=CONTEXT_TOKENS, device=torch.device("cpu"), batch_rows=2
    )
    with pytest.raises(GenerationFailed) as failed:
        generator.generate([Prompt(tuple([5] * length), length) for length in (3, 20, 7)], Sampling(11))
    assert widths == [(2, 20)]
    says(str(failed.value), "2 texts", "31 tokens", "4 GiB")


def test_nothing_to_do_is_done(folder: Path) -> None:
    assert generator_of(folder).generate([], Sampling(4)) == []


@pytest.mark.parametrize("busy_rounds", [0, 1, 3])
def test_rows_run_on_while_other_ranks_work(folder: Path, busy_rounds: int) -> None:
    """Equally many forward passes on all ranks: here a rank without work, or with less than another."""
    lm, tokens = load(folder)
    passes: list[int] = []

    def next_logits(step: DecodingStep) -> torch.Tensor:
        passes.append(len(step.ids))
        return lm.next_logits(step)

    generator = LocalGenerator(next_logits, tokens, context_tokens=CONTEXT_TOKENS, device=lm.device, batch_rows=2)
    sampling = Sampling(6, stop=("\x00",))
    # Another rank works through `busy_rounds` batches to the last token.
    answers = iter(([True] * sampling.max_new_tokens) * busy_rounds + [False])
    expected = generator.generate(prompts_of("the"), sampling)
    passes.clear()
    prompts = prompts_of("the") if busy_rounds else []
    assert generator.generate(prompts, sampling, keep_going=lambda _: next(answers)) == expected[: len(prompts)]
    assert len(passes) == sampling.max_new_tokens * busy_rounds
    assert set(passes) <= {1}


def test_bf16_generates(folder: Path) -> None:
    lm = PlainLM.load(folder, dtype=torch.bfloat16, device=torch.device("cpu"))
    generator = LocalGenerator.of(lm, TextTokens.of_folder(folder))
    assert len(generator.generate(prompts_of(*TEXTS), Sampling(5, temperature=1.0))) == len(TEXTS)
