import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaslm.slm.keys import KEY_BITS, hash_of, row_of, target_keys
from megaslm.slm.visits import MOST_VISITS


def test_keys_are_unique_and_ordered_by_row_visit_position() -> None:
    first = target_keys(torch.tensor([3, 4]), 0, seq_len=5)
    again = target_keys(torch.tensor([3, 4]), 1, seq_len=5)
    ordered = torch.cat([first[0], again[0], first[1], again[1]])
    assert (ordered.diff() > 0).all()
    assert int(target_keys(torch.tensor([2**32 - 1]), 255, seq_len=2**16).max()) == 2**KEY_BITS - 1


def test_each_row_has_a_visit_of_its_own() -> None:
    rows, visits = torch.tensor([3, 7, 3]), torch.tensor([0, 2, 1])
    keys = target_keys(rows, visits, seq_len=5)
    for row, visit, found in zip(rows, visits.tolist(), keys, strict=True):
        assert torch.equal(found, target_keys(row[None], visit, seq_len=5)[0])


def test_copies_of_a_row_have_keys_of_their_own_in_any_epoch() -> None:
    for epoch in (0, 200, 255, 256, 1000):
        keys = target_keys(torch.full((MOST_VISITS,), 9), epoch + torch.arange(MOST_VISITS), seq_len=3)
        assert len(keys.unique()) == 3 * MOST_VISITS
        assert (row_of(keys) == 9).all()


def test_a_key_knows_its_row() -> None:
    rows = torch.tensor([0, 17, 2**32 - 1])
    assert (row_of(target_keys(rows, 3, seq_len=4)) == rows[:, None]).all()


def test_rows_too_long_for_their_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="seq_len = 65537"):
        target_keys(torch.tensor([0]), 0, seq_len=2**16 + 1)


def test_hashes_look_uniform_and_independent() -> None:
    keys = target_keys(torch.arange(64), 0, seq_len=1024).flatten()
    one, other = hash_of(keys, 0, 1).double() / 2**31, hash_of(keys, 0, 2).double() / 2**31
    for hashes in (one, other):
        counts = torch.histc(hashes, 16, 0.0, 1.0)
        # 65,536 keys in 16 bins: 4096 each, with a standard deviation of 62.
        assert (counts - 4096).abs().max() < 5 * 62
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / 256


def splitmix64(word: int) -> int:
    """Written from the paper's definition, in unbounded integers."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


@given(st.integers(0, 2**KEY_BITS - 1), st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_hash_is_splitmix64_of_key_and_salts(key: int, seed: int, step: int) -> None:
    expected = splitmix64(splitmix64(splitmix64(key) ^ seed) ^ step) % 2**31
    assert int(hash_of(torch.tensor(key), seed, step)) == expected
