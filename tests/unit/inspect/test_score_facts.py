"""What a dataset's summary says is shown with the text that it is about."""

from pathlib import Path

import pytest

from megaslm.config.recipe import Bos
from megaslm.dataset.manifest import SCORES
from megaslm.errors import DataError
from megaslm.inspect import dataset_facts as module
from megaslm.inspect.dataset_facts import DocumentFacts, dataset_facts
from megaslm.inspect.row_text import read_row
from tests.inspected import DOCUMENTS, make_inspected
from tests.messages import Says
from tests.scores import write_scores

TEXTS = {domain: [text for part in parts for text in part] for domain, parts in DOCUMENTS.items()}


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    dataset = make_inspected(tmp_path / "dataset", scored=True).folder
    write_scores(dataset, fewest_targets=1)
    return dataset


def extremes(dataset: Path) -> dict[str, tuple[DocumentFacts, ...]]:
    """Of each domain the documents, the easiest first."""
    found = {share.domain: share.scores for share in dataset_facts(dataset).shares}
    return {domain: scores.best for domain, scores in found.items() if scores is not None}


def test_documents_are_given_with_their_texts(scored: Path) -> None:
    """The losses rise along a part, so that the easiest documents are the first of parts."""
    documents = extremes(scored)
    assert [document.excerpt for document in documents["b"]] == TEXTS["b"]
    assert sorted(document.excerpt for document in documents["a"]) == sorted(TEXTS["a"])
    worst = dataset_facts(scored, "train", "a").shares[0].scores
    assert worst is not None
    assert worst.worst[0].excerpt == "qrstuvwxyz"


def test_they_begin_where_the_row_view_has_them_begin(scored: Path) -> None:
    for domain, documents in extremes(scored).items():
        assert len(documents) == len(TEXTS[domain])
        for document in documents:
            row = read_row(scored, "train", document.row, domain)
            (shown,) = [each for each in row.documents if each.begins and each.start == document.token]
            text = "".join(piece.text for piece in shown.pieces)
            assert document.excerpt.startswith(text)
            assert document.targets == len(document.excerpt.encode())


@pytest.mark.parametrize("bos", ["document", "row"])
def test_bos_is_no_text(tmp_path: Path, bos: Bos) -> None:
    dataset = make_inspected(tmp_path / "dataset", scored=True, bos=bos).folder
    write_scores(dataset, fewest_targets=1)
    for domain, documents in extremes(dataset).items():
        assert sorted(document.excerpt for document in documents) == sorted(TEXTS[domain])
        for document in documents:
            begins = [each for each in read_row(dataset, "train", document.row, domain).documents if each.begins]
            (shown,) = [each for each in begins if document.token == (each.start if each.bos is None else each.bos)]
            assert document.targets == len(document.excerpt.encode()) + (shown.bos is not None)


def test_of_a_long_document_only_the_beginning_is_read(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXCERPT_TOKENS", 3)
    excerpts = {document.excerpt for document in extremes(scored)["a"]}
    # The third token is the first of the four bytes of a character.
    assert excerpts == {"abc", "mno", "qrs", "ab\t", "é"}


def test_losses_are_the_summarys_where_there_is_one(scored: Path) -> None:
    exact = dataset_facts(scored)
    (scored / SCORES).unlink()
    sampled = dataset_facts(scored)
    assert exact.scores is not None
    assert sampled.scores is None
    for ours, theirs in zip(exact.shares, sampled.shares, strict=True):
        assert ours.ref_loss is not None
        assert theirs.ref_loss is not None
        assert theirs.scores is None
        assert (ours.ref_loss.rows, ours.ref_loss.targets) == (ours.rows, ours.targets)
        # All rows are in a sample of these few, and their losses have exact sums.
        assert (ours.ref_loss.mean, ours.ref_loss.perplexity) == (theirs.ref_loss.mean, theirs.ref_loss.perplexity)
        assert ours.scores is not None
        assert sum(ours.scores.histogram) == ours.targets
        assert ours.ref_loss.median == exact.scores.of_domain(ours.split, ours.domain).median
        assert ours.ref_loss.median == pytest.approx(theirs.ref_loss.median, rel=0.1)


def test_a_summary_of_other_parts_is_refused(scored: Path, tmp_path: Path, says: Says) -> None:
    content = (scored / SCORES).read_text()
    (scored / SCORES).write_text(content.replace("part-00001", "part-00002"))
    with pytest.raises(DataError) as refused:
        dataset_facts(scored)
    says(refused, SCORES)


def test_a_dataset_of_tokens_has_no_scores(scored: Path, tmp_path: Path) -> None:
    tokens = make_inspected(tmp_path / "tokens", scored=False).folder
    (tokens / SCORES).write_text((scored / SCORES).read_text())
    facts = dataset_facts(tokens)
    assert facts.scores is None
    assert [share.scores for share in facts.shares] == [None, None]
