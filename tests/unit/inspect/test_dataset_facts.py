"""The numbers of a dataset are those of its rows."""

import math
from pathlib import Path

import numpy as np
import pytest

from megaslm.config.recipe import Bos
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.inspect import dataset_facts as module
from megaslm.inspect.dataset_facts import dataset_facts, perplexity
from megaslm.inspect.row_text import read_row
from tests.inspected import EOS_ID, SEQ_LEN, Inspected, make_inspected
from tests.messages import Says


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    return make_inspected(tmp_path_factory.mktemp("scored"), scored=True)


def test_counts(scored: Inspected) -> None:
    a, b = dataset_facts(scored.folder).shares
    assert [(share.split, share.domain, share.licence) for share in (a, b)] == [
        ("train", "a", "CC0"),
        ("train", "b", "MIT"),
    ]
    assert (a.rows, a.parts, a.documents, b.rows, b.parts, b.documents) == (6, 2, 5, 3, 1, 3)
    assert (b.targets, b.targets_per_document) == (20, 20 / 3)
    stored = sum(path.stat().st_size for path in (scored.folder / "train" / "a").rglob("*.mds"))
    assert (a.bytes, a.bytes_per_target) == (stored, stored / a.targets)


def test_padding_is_counted_without_reading_a_row(scored: Inspected) -> None:
    for share in dataset_facts(scored.folder).shares:
        places = share.rows * SEQ_LEN + share.parts
        tokens = sum(len(stream) for (domain, _), stream in scored.streams.items() if domain == share.domain)
        assert share.padding_share == (places - tokens) / places > 0


@pytest.mark.parametrize("bos", ["document", "row"])
def test_padding_is_what_the_rows_end_with(tmp_path: Path, bos: Bos) -> None:
    folder = make_inspected(tmp_path, scored=False, bos=bos).folder
    for share in dataset_facts(folder).shares:
        rows = [read_row(folder, "train", row, share.domain) for row in range(share.rows)]
        places = share.rows * (SEQ_LEN + 1) if bos == "row" else share.rows * SEQ_LEN + share.parts
        assert share.padding_share == sum(row.padding_tokens for row in rows) / places > 0


def test_losses_are_those_of_valid_targets(scored: Inspected) -> None:
    rows = RowReader(scored.folder, "train", "a").rows(0, 6)
    losses = rows["ref_loss"][rows["tokens"][:, :-1] != EOS_ID].astype(np.float64)
    found = dataset_facts(scored.folder).shares[0].ref_loss
    assert found is not None
    assert (found.rows, found.targets) == (6, losses.size)
    assert found.mean == pytest.approx(losses.mean())
    assert found.median == np.median(losses)
    assert found.p95 == pytest.approx(np.quantile(losses, 0.95))
    assert found.perplexity == pytest.approx(math.exp(losses.mean()))


def test_of_many_rows_some_are_read_evenly_spread(scored: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED_ROWS", 3)
    rows = RowReader(scored.folder, "train", "a").rows(0, 6)
    chosen = [0, 2, 5]
    losses = rows["ref_loss"][chosen][rows["tokens"][chosen, :-1] != EOS_ID].astype(np.float64)
    found = dataset_facts(scored.folder).shares[0].ref_loss
    assert found is not None
    assert (found.rows, found.targets) == (3, losses.size)
    assert found.mean == pytest.approx(losses.mean())


def test_perplexity_of_losses_beyond_all_measure() -> None:
    assert perplexity(2.0) == math.exp(2.0)
    assert perplexity(65504.0) == math.inf


def test_a_dataset_without_losses_has_none(tmp_path: Path) -> None:
    make_inspected(tmp_path, scored=False)
    assert [share.ref_loss for share in dataset_facts(tmp_path).shares] == [None, None]


def test_one_domain(scored: Inspected, says: Says) -> None:
    assert [share.domain for share in dataset_facts(scored.folder, "train", "b").shares] == ["b"]
    with pytest.raises(DataError) as refused:
        dataset_facts(scored.folder, "heldout")
    says(refused, "heldout/any", "train/a", "train/b")
