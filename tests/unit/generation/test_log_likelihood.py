"""Log-likelihoods are those that lm-eval's algorithm gives with plain transformers."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from megaslm.errors import DataError, PromptTooLong
from megaslm.generation.log_likelihood import LogLikelihood, log_likelihoods
from megaslm.generation.text_tokens import encode_pairs
from tests.generating import CONTEXT_TOKENS, load, make_folder
from tests.messages import Says

PAIRS = [
    ("the answer is", " five"),
    ("the answer is ", "five"),
    ("the answ", "er is five"),  # Merges across the border.
    ("two and", "\n\nthree"),
    ("A question: \n\n", "what is the answer? Answer: 12 + 30 = 42"),
    ("", "two and three"),
    ("   ", "two"),
    ("naïve 😀", " é"),
    ("a", "b"),
    ("the sum of two and three is five, so the answer is", " 5"),
]
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 8}, "granite": {"logits_scaling": 3.0}}


def as_lm_eval_does(folder: Path, context: str, continuation: str) -> LogLikelihood:
    """The algorithm of lm-eval 0.4.13, `TemplateLM.loglikelihood` and `HFLM._loglikelihood_tokens`, for one pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    if context:
        whole = tokenizer.encode(context + continuation)
        context_ids = tokenizer.encode(context)
        continuation_ids = whole[len(context_ids) :]
    else:
        context_ids, continuation_ids = [tokenizer.eos_token_id], tokenizer.encode(continuation)
    inputs = torch.tensor([(context_ids + continuation_ids)[:-1]])
    with torch.no_grad():
        logits = F.log_softmax(lm(inputs).logits[0], dim=-1)[-len(continuation_ids) :]
    targets = torch.tensor(continuation_ids)
    nats = float(logits.gather(1, targets[:, None]).sum())
    return LogLikelihood(nats, len(continuation_ids), bool((logits.argmax(dim=1) == targets).all()))


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_are_those_of_lm_eval(family: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, family, **FAMILIES[family])
    lm, tokens = load(folder)
    greedy = torch.tensor([tokens.encode(["the"])[0]])
    follows = tokens.decode(lm._lm.generate(greedy, max_new_tokens=3, do_sample=False, pad_token_id=0)[0][1:].tolist())
    pairs = [*PAIRS, *([] if "\ufffd" in follows else [("the", follows)])]
    expected = [as_lm_eval_does(folder, *pair) for pair in pairs]
    for batch_rows in (1, 4, 16):
        found = log_likelihoods(lm, tokens, pairs, batch_rows=batch_rows)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.nats == pytest.approx(theirs.nats, abs=1e-4)
            assert ours[1:] == theirs[1:]


def test_what_is_greedy_is_said_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    lm, tokens = load(folder)
    with torch.no_grad():
        lm._lm.lm_head.weight[tokens.encode(["x"])[0][0]] = 0.0
        lm._lm.lm_head.weight[1:] *= 0.0
        lm._lm.lm_head.weight[tokens.encode(["a"])[0][0]] = 1e-3 * lm._lm.model.norm.weight
    pairs = [("x", letters) for letters in ("a", "b", "aa", "ab")]
    found = log_likelihoods(lm, tokens, pairs)
    expected = [as_seen(lm._lm, tokens.encode(["x" + letters])[0]) for _, letters in pairs]
    assert [result.is_greedy for result in found] == expected


def as_seen(lm: torch.nn.Module, ids: list[int]) -> bool:
    with torch.no_grad():
        return bool((lm(torch.tensor([ids])).logits[0, :-1].argmax(dim=1) == torch.tensor(ids[1:])).all())


def test_results_come_as_they_are_measured(tmp_path: Path) -> None:
    lm, tokens = load(make_folder(tmp_path))
    seen: dict[int, LogLikelihood] = {}
    found = log_likelihoods(lm, tokens, PAIRS, batch_rows=3, finished=seen.__setitem__)
    assert seen == dict(enumerate(found))
    lengths = [len(ids) for ids, _ in encode_pairs(tokens, PAIRS)]
    assert [lengths[place] for place in seen] == sorted(lengths, reverse=True)
    assert log_likelihoods(lm, tokens, []) == []


def test_a_certain_continuation_has_no_nats(tmp_path: Path) -> None:
    """The scale is nats: V equally likely tokens cost ln V each."""
    folder = make_folder(tmp_path)
    lm, tokens = load(folder)
    with torch.no_grad():
        lm._lm.lm_head.weight.zero_()
    (found,) = log_likelihoods(lm, tokens, [("x", "yz")])
    assert found.nats == pytest.approx(-2 * math.log(lm.vocab_size), rel=1e-6)


def test_a_continuation_without_tokens_is_refused(tmp_path: Path, says: Says) -> None:
    _, tokens = load(make_folder(tmp_path))
    with pytest.raises(DataError) as refused:
        encode_pairs(tokens, [("a", "b"), ("a", "")])
    says(str(refused.value), "place 1")


def test_a_pair_beyond_the_context_is_refused(tmp_path: Path, says: Says) -> None:
    lm, tokens = load(make_folder(tmp_path))
    seen: list[int] = []
    pairs = [("x" * (CONTEXT_TOKENS - more), "yz") for more in (1, 0)]
    with pytest.raises(PromptTooLong) as refused:
        log_likelihoods(lm, tokens, pairs, finished=lambda place, _: seen.append(place))
    assert (refused.value.places, seen) == ([1], [])
    says(str(refused.value), str(CONTEXT_TOKENS))
    assert len(log_likelihoods(lm, tokens, pairs[:1])) == 1
