"""Bits are where a reader of the format expects them, and come back as they were."""

import numpy as np
import pytest

from megaslm.dataset.rows import mask_bytes, pack_mask, unpack_mask


@pytest.mark.parametrize("seq_len", [1, 7, 8, 9, 16, 4096])
def test_what_was_packed_comes_back(seq_len: int) -> None:
    mask = np.random.default_rng(seq_len).random((5, seq_len)) < 0.6
    bits = pack_mask(mask)
    assert (bits.dtype, bits.shape) == (np.uint8, (5, mask_bytes(seq_len)))
    back = unpack_mask(bits, seq_len)
    assert back.dtype == np.bool_
    assert np.array_equal(back, mask)
    assert np.count_nonzero(np.unpackbits(bits)) == np.count_nonzero(mask)


def test_target_i_is_bit_i_mod_8_of_byte_i_div_8() -> None:
    for target in range(11):
        mask = np.zeros((1, 11), np.bool_)
        mask[0, target] = True
        expected = [0, 0]
        expected[target // 8] = 1 << target % 8
        assert pack_mask(mask).tolist() == [expected]
