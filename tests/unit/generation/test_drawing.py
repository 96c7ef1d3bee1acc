"""The next token is the likeliest one or a draw, by the row's seed, position and logits alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaslm.generation.drawing import NOT_A_NUMBER, choose, gumbel, row_seeds
from megaslm.generation.sampling import Sampling, seed_of

CPU = torch.device("cpu")
MASK = 0xFFFFFFFF


def mixed(bits: int) -> int:
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B & MASK
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35 & MASK
    return bits ^ (bits >> 16)


def defined_noise(seed: int, position: int, token: int) -> float:
    at_position = mixed(mixed((position * 0x85EBCA77 & MASK) ^ (seed & MASK)) ^ (seed >> 32))
    bits = mixed(mixed((token * 0x9E3779B1 & MASK) ^ (seed >> 32)) ^ at_position)
    return -math.log(-math.log1p(-((bits & 0x7FFFFFFF) + 0.5) * 2.0**-31))


def chosen(logits: torch.Tensor, sampling: Sampling, positions: int = 0) -> torch.Tensor:
    """Of many rows with equal logits, each with a key of its own."""
    seeds = row_seeds([seed_of(sampling, key) for key in range(len(logits))], CPU)
    return choose(logits, sampling, seeds, torch.full((len(logits),), positions))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20), st.integers(1, 400))
def test_noise_is_what_its_definition_says(seed: int, position: int, vocab_size: int) -> None:
    found = gumbel(row_seeds([seed], CPU), torch.tensor([position]), vocab_size)
    expected = [defined_noise(seed, position, token) for token in range(vocab_size)]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert chosen(torch.tensor([[0.0, 2.0, 2.0], [3.0, 2.0, 1.0]]), Sampling(1)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "sampling", [Sampling(1), Sampling(1, temperature=1.0), Sampling(1, temperature=1.0, top_p=0.5)]
)
def test_nan_is_no_token(sampling: Sampling) -> None:
    logits = torch.tensor([[0.0, math.nan, 1.0], [0.0, -math.inf, -math.inf]])
    assert chosen(logits, sampling).tolist() == [NOT_A_NUMBER, 0]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1, temperature=1.0), 5),
        (Sampling(1, temperature=0.5, seed=3), 5),
        (Sampling(1, temperature=2.0), 5),
        (Sampling(1, temperature=1.0, top_p=0.75), 3),
        (Sampling(1, temperature=1.0, top_p=0.35), 1),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probabilities_say(sampling: Sampling, kept: int) -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25])
    draws = 40_000
    tokens = chosen(probabilities.log().expand(draws, 5), sampling, positions=7)
    counts = torch.bincount(tokens, minlength=5).double()
    expected = probabilities.double() ** (1 / sampling.temperature)
    expected[expected.argsort(descending=True)[kept:]] = 0.0
    expected *= draws / expected.sum()
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - expected) ** 2 / expected)[expected > 0].sum()
    # The 99.99th percentile of 4 degrees of freedom; the draws are fixed by the seed.
    assert chi_square < 23.5


def test_a_nucleus_ends_with_the_token_that_reaches_its_probability() -> None:
    tokens = chosen(torch.zeros(200, 4), Sampling(1, temperature=1.0, top_p=0.5))
    assert set(tokens.tolist()) == {0, 1}


def test_positions_and_keys_draw_independently() -> None:
    """Pairs of draws, of neighbouring positions and of neighbouring keys, are as often as their products."""
    sampling = Sampling(1, temperature=1.0)
    logits = torch.zeros(20_000, 4)
    first, second = chosen(logits, sampling, 0), chosen(logits, sampling, 1)
    for one, other in ((first, second), (first[:-1], first[1:])):
        counts = torch.bincount(one * 4 + other, minlength=16).double()
        chi_square = ((counts - len(one) / 16) ** 2 / (len(one) / 16)).sum()
        # The 99.99th percentile of 15 degrees of freedom.
        assert chi_square < 44.3


def test_a_last_bit_of_the_logits_changes_no_draw() -> None:
    """Logits of other batch sizes differ by their rounding."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 5000, generator=generator) * 3
    other = logits + 1e-6 * torch.randn(logits.shape, generator=generator)
    sampling = Sampling(1, temperature=1.0, top_p=0.95)
    assert (chosen(logits, sampling) != chosen(other, sampling)).sum() <= 1
