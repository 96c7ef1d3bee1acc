"""Settings out of their range are refused; the seed of a prompt."""

import pytest

from megaslm.errors import ConfigError
from megaslm.generation.sampling import Sampling, before_stop, seed_of
from tests.messages import Says


@pytest.mark.parametrize(
    "changed",
    [
        {"max_new_tokens": 0},
        {"stop": ("\n", "")},
        {"temperature": -0.5},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_a_value_out_of_its_range_is_refused(changed: dict[str, object], says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        Sampling(**{"max_new_tokens": 8, **changed})  # type: ignore[arg-type]
    says(str(refused.value), next(iter(changed)))


def test_seeds_differ_by_seed_and_key() -> None:
    seeds = {seed_of(Sampling(1, seed=seed), key) for seed in (0, 1, 12) for key in (0, 1, 2, 21, 10**12, -1)}
    assert len(seeds) == 18
    assert seed_of(Sampling(1, seed=1), 5) == seed_of(Sampling(9, temperature=0.7, seed=1), 5)


def test_the_first_stop_string_counts() -> None:
    assert before_stop("one two three", ("three", "two")) == "one "
    assert before_stop("one", ("two",)) is None
    assert before_stop("one", ()) is None
