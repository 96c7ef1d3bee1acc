import pytest

from megaslm.model.reference_model import windows_of
from tests.messages import Says


@pytest.mark.parametrize(
    ("seq_len", "window", "stride"),
    [(16, 16, 16), (16, 8, 8), (16, 8, 4), (17, 8, 3), (10, 4, 1), (10, 7, 7), (1, 1, 1)],
)
def test_every_target_is_taken_once_with_as_much_context_as_can_be(seq_len: int, window: int, stride: int) -> None:
    windows = list(windows_of(seq_len, window, stride))
    taken = [target for start, stop, fresh in windows for target in range(fresh, stop)]
    assert taken == list(range(seq_len))
    for start, stop, fresh in windows:
        assert (start >= 0, stop - start, stop <= seq_len) == (True, window, True)
        assert fresh - start >= min(fresh, window - stride)


def test_overlapping_windows() -> None:
    assert list(windows_of(4096, 2048, 1024)) == [(0, 2048, 0), (1024, 3072, 2048), (2048, 4096, 3072)]


@pytest.mark.parametrize(("seq_len", "window", "stride"), [(8, 9, 1), (8, 4, 5), (8, 4, 0)])
def test_windows_that_cannot_be(seq_len: int, window: int, stride: int, says: Says) -> None:
    with pytest.raises(ValueError) as refused:
        list(windows_of(seq_len, window, stride))
    says(refused, seq_len, window, stride)
