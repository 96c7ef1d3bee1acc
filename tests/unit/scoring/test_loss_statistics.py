"""The statistics of a part are those of its targets and documents, however its rows come."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from megaslm.config.recipe import Bos
from megaslm.dataset.packing import RowPacker
from megaslm.dataset.score_summary import LOSS_BIN_EDGES, DocumentLoss, PartStatistics
from megaslm.scoring.loss_statistics import FEWEST_TARGETS, MOST_DOCUMENTS, LossStatistics

EOS = 2
SEQ_LEN = 24
Rows = tuple[NDArray[np.uint16], NDArray[np.float16]]


def packed(lengths: Sequence[int], bos: Bos = "none") -> NDArray[np.uint16]:
    """The rows of a part with documents of these lengths, BOS and EOS not counted, as `prepare` packs them."""
    packer = RowPacker(SEQ_LEN, EOS, bos=bos, bos_id=1)
    full = packer.add([np.full(length, 7) for length in lengths])
    return np.concatenate([full, packer.finish()]).astype(np.uint16)


def with_losses(tokens: NDArray[np.uint16], losses: NDArray[np.floating]) -> Rows:
    """Losses (n · L,) of the part's targets in order, 0 where these are not valid."""
    stored = losses.reshape(-1, SEQ_LEN).astype(np.float16)
    stored[tokens[:, :-1] == EOS] = 0
    return tokens, stored


def random_part(seed: int, lengths: Sequence[int]) -> Rows:
    tokens = packed(lengths)
    places = len(tokens) * SEQ_LEN
    generator = np.random.default_rng(seed)
    return with_losses(tokens, generator.lognormal(0, 2, places).clip(0, 65504))


def statistics(rows: Rows, cuts: Sequence[int] = (), *, rows_share_a_token: bool = True) -> PartStatistics:
    """Fed in pieces that end before the rows `cuts`."""
    found = LossStatistics(EOS, rows_share_a_token=rows_share_a_token)
    for tokens, losses in zip(np.split(rows[0], cuts), np.split(rows[1], cuts), strict=True):
        found.add(tokens, losses)
    return found.finish()


def documents_one_by_one(lengths: Sequence[int], losses: NDArray[np.float16]) -> list[DocumentLoss]:
    """By the definition: a document's targets are all of its tokens but the first, and its EOS."""
    found, start = [], 0
    for length in lengths:
        of_document = losses.ravel()[start : start + length].tolist()
        mean = float(sum(map(Fraction, of_document)) / length)
        found.append(DocumentLoss(row=start // SEQ_LEN, token=start % SEQ_LEN, targets=length, mean_loss=mean))
        start += length + 1
    return found


def test_a_target_mask_leaves_out_targets_and_keeps_the_bounds_of_documents() -> None:
    tokens, losses = random_part(4, LENGTHS)
    target_mask = (np.random.default_rng(5).random(losses.shape) < 0.5) & (tokens[:, :-1] != EOS)
    losses = np.where(target_mask, losses, np.float16(0))
    found = LossStatistics(EOS)
    for start in range(0, len(tokens), 7):
        rows = slice(start, start + 7)
        found.add(tokens[rows], losses[rows], target_mask[rows].astype(np.uint8))
    statistics_found = found.finish()
    assert statistics_found.targets == target_mask.sum()
    assert statistics_found.loss_sum == float(sum(map(Fraction, losses[target_mask].tolist())))
    documents, start = [], 0
    for length in LENGTHS:
        place = slice(start, start + length)
        left = target_mask.ravel()[place]
        if left.sum() >= FEWEST_TARGETS:
            mean = float(sum(map(Fraction, losses.ravel()[place][left].tolist())) / int(left.sum()))
            documents.append(
                DocumentLoss(row=start // SEQ_LEN, token=start % SEQ_LEN, targets=int(left.sum()), mean_loss=mean)
            )
        start += length + 1
    assert len(documents) > MOST_DOCUMENTS
    hardest = sorted(documents, key=lambda document: -document.mean_loss)[:MOST_DOCUMENTS]
    assert statistics_found.worst == tuple(hardest)


LENGTHS = np.random.default_rng(0).integers(1, 120, 90).tolist()


def test_sums_and_counts_are_those_of_the_valid_targets() -> None:
    tokens, losses = rows = random_part(1, LENGTHS)
    found = statistics(rows)
    valid = losses[tokens[:, :-1] != EOS].tolist()
    assert found.targets == sum(LENGTHS) == len(valid)
    assert found.loss_sum == float(sum(map(Fraction, valid)))
    edges = [-math.inf, *LOSS_BIN_EDGES, math.inf]
    counted = [sum(low <= loss < high for loss in valid) for low, high in pairwise(edges)]
    assert list(found.histogram) == counted
    assert min(counted[0], counted[-1]) > 0, "the test has to reach the bins without an edge"


def test_documents_are_those_that_were_packed() -> None:
    rows = random_part(2, LENGTHS)
    documents = [each for each in documents_one_by_one(LENGTHS, rows[1]) if each.targets >= FEWEST_TARGETS]
    found = statistics(rows)
    assert found.worst == tuple(sorted(documents, key=lambda each: -each.mean_loss)[:MOST_DOCUMENTS])
    assert found.best == tuple(sorted(documents, key=lambda each: each.mean_loss)[:MOST_DOCUMENTS])
    assert len(found.worst) == MOST_DOCUMENTS


@pytest.mark.parametrize("seed", range(4))
def test_it_does_not_matter_how_rows_are_cut(seed: int) -> None:
    """Documents of several rows and of several in a row; the last cut is before every row."""
    rows = random_part(seed, np.random.default_rng(seed).integers(1, 90, 40).tolist())
    count = len(rows[0])
    generator = np.random.default_rng(seed)
    cuts = [np.sort(generator.choice(np.arange(1, count), size, replace=False)) for size in (1, 3, 9, count - 1)]
    whole = statistics(rows)
    assert [statistics(rows, cut) for cut in cuts] == [whole] * len(cuts)


@pytest.mark.parametrize(
    ("lengths", "places"),
    [
        ([SEQ_LEN * 5], [(0, 0, SEQ_LEN * 5)]),
        # The EOS is the last token of a row, and the first of the next: the document after it begins in that.
        ([SEQ_LEN * 2, 40], [(0, 0, SEQ_LEN * 2), (2, 1, 40)]),
        # The first token of a document is the last of a row, and the first of the next.
        ([SEQ_LEN * 2 - 1, 40], [(0, 0, SEQ_LEN * 2 - 1), (2, 0, 40)]),
        # The part ends with the EOS of its last document and has no padding.
        ([SEQ_LEN * 4 - 41, 40], [(0, 0, SEQ_LEN * 4 - 41), (2, 8, 40)]),
        ([1, 40, 1, 1], [(0, 2, 40)]),
        ([3], []),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_where_documents_begin(lengths: list[int], places: list[tuple[int, int, int]], *, one_by_one: bool) -> None:
    tokens = packed(lengths)
    rows = with_losses(tokens, np.ones(len(tokens) * SEQ_LEN))
    found = statistics(rows, range(1, len(tokens)) if one_by_one else ())
    assert [(each.row, each.token, each.targets) for each in found.worst] == places
    assert found.worst == found.best, "all means are equal: the earlier document comes first"
    assert found.targets == sum(lengths)


@pytest.mark.parametrize(
    ("lengths", "places"),
    [
        # The first follows the BOS of its row, and its EOS is the last token of that.
        ([SEQ_LEN * 2 - 1, 40], [(0, 0, SEQ_LEN * 2), (2, 0, 41)]),
        # The EOS of the first is the first token after a BOS.
        ([SEQ_LEN * 2, 40], [(0, 0, SEQ_LEN * 2 + 1), (2, 2, 40)]),
        # The first token of the second is the last of a row.
        ([SEQ_LEN * 2 - 2, 40], [(0, 0, SEQ_LEN * 2 - 1), (1, SEQ_LEN, 40)]),
        ([1, 40, 1, 1], [(0, 3, 40)]),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_where_documents_begin_in_rows_with_bos(
    lengths: list[int], places: list[tuple[int, int, int]], *, one_by_one: bool
) -> None:
    tokens = packed(lengths, "row")
    rows = with_losses(tokens, np.ones(len(tokens) * SEQ_LEN))
    found = statistics(rows, range(1, len(tokens)) if one_by_one else (), rows_share_a_token=False)
    assert [(each.row, each.token, each.targets) for each in found.worst] == places


def test_documents_with_bos_have_a_target_more() -> None:
    rows = with_losses(packed(LENGTHS, "document"), np.ones(len(packed(LENGTHS, "document")) * SEQ_LEN))
    longer = [length + 1 for length in LENGTHS]
    assert statistics(rows) == statistics(with_losses(packed(longer), np.ones(len(rows[0]) * SEQ_LEN)))


def test_a_row_of_padding_alone_is_nothing() -> None:
    rows = random_part(3, [50, 50])
    padded = (
        np.concatenate([rows[0], np.full((2, SEQ_LEN + 1), EOS, np.uint16)]),
        np.zeros((len(rows[0]) + 2, SEQ_LEN)),
    )
    padded[1][: len(rows[0])] = rows[1]
    assert statistics((padded[0], padded[1].astype(np.float16)), [len(rows[0])]) == statistics(rows)


def test_of_equal_documents_the_earlier_are_kept() -> None:
    lengths = [FEWEST_TARGETS] * (3 * MOST_DOCUMENTS)
    tokens = packed(lengths)
    rows = with_losses(tokens, np.full(len(tokens) * SEQ_LEN, 0.75))
    found = statistics(rows, range(1, len(tokens)))
    starts = [each.row * SEQ_LEN + each.token for each in found.worst]
    assert starts == [number * (FEWEST_TARGETS + 1) for number in range(MOST_DOCUMENTS)]
    assert found.best == found.worst


def test_short_documents_are_not_compared() -> None:
    tokens = packed([FEWEST_TARGETS - 1, FEWEST_TARGETS])
    found = statistics(with_losses(tokens, np.ones(len(tokens) * SEQ_LEN)))
    assert [each.targets for each in found.worst] == [FEWEST_TARGETS]


def test_what_is_stored_at_invalid_targets_is_not_read() -> None:
    tokens, losses = rows = random_part(4, LENGTHS)
    losses = losses.copy()
    losses[tokens[:, :-1] == EOS] = 9
    assert statistics((tokens, losses)) == statistics(rows)


def test_the_smallest_and_the_largest_losses_there_are() -> None:
    tokens = packed([SEQ_LEN * 2])
    losses = np.full(len(tokens) * SEQ_LEN, 65504.0)
    losses[:3] = [-0.0, 2.0**-24, 32.0]
    found = statistics(with_losses(tokens, losses))
    assert found.loss_sum == 2.0**-24 + 32 + (SEQ_LEN * 2 - 3) * 65504.0
    assert found.histogram == (2, *[0] * (len(LOSS_BIN_EDGES) - 1), SEQ_LEN * 2 - 2)
    assert [each.mean_loss for each in found.worst] == [found.loss_sum / (SEQ_LEN * 2)]


def test_the_record_comes_back_from_json_as_it_was() -> None:
    found = statistics(random_part(5, LENGTHS))
    assert PartStatistics.model_validate_json(found.model_dump_json()) == found
    assert PartStatistics.model_validate_json(found.model_dump_json(indent=1)) == found
