"""Scores of a reference with a tokenizer of its own, against loops in float64 that share no code with MegaSLM."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.config.recipe import Recipe
from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.dataset.packing import documents_in
from megaslm.dataset.remote import open_dataset
from megaslm.dataset.rows import RowReader
from megaslm.dataset.score_summary import parse_scores
from megaslm.errors import ReferenceMismatch
from megaslm.preparing.prepare import prepare
from megaslm.scoring import work
from megaslm.training.data_checks import check_reference
from megaslm.training.training_data import NamedReference
from tests.conversations import byte_level_folder
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.scoring import fail, make_reference, rows_of, run_job, task_of

SEQ_LEN, VOCAB_SIZE, POSITIONS = 48, 400, 1024
BOS, EOS = 0, 1
"""Of the reference's tokenizer."""


class Texts(NamedTuple):
    """Documents in rows, and a reference with another tokenizer."""

    tokens: Path
    manifest: Manifest
    model: Path
    lm: PreTrainedModel
    rows_tokenizer: Tokenizer
    own_tokenizer: Tokenizer


@pytest.fixture(scope="module", params=["none", "document", "row"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """Paragraphs of code with letters outside of ASCII; most cross the end of a row."""
    folder = tmp_path_factory.mktemp("texts")
    lines = Path(json.__file__).read_text(encoding="utf-8").splitlines()
    documents = [
        "\n".join(lines[start : start + size]) for start, size in zip(range(0, 300, 9), (1, 4, 9) * 20, strict=False)
    ]
    documents = [f"{text} ← é鿿𝄞" if number % 3 else text for number, text in enumerate(documents) if text.strip()]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "name": "texts", "licence": "as its sources", "seq_len": SEQ_LEN, "bos": request.param,
            "tokenizer": {"train_sentencepiece": {"vocab_size": VOCAB_SIZE}},
            "sources": [{"domain": "code", "reader": "jsonl", "paths": [str(path)]}],
            "part_bytes": 4_000,
        }
    )  # fmt: skip
    manifest = prepare(recipe, folder / "tokens", workers=1)
    byte_level_folder(folder / "own")
    lm = make_reference(folder / "model", tokenizer=folder / "own", vocab_size=400, max_position_embeddings=POSITIONS)
    rows_tokenizer = Tokenizer.from_file(str(folder / "tokens" / "tokenizer" / "tokenizer.json"))
    own_tokenizer = Tokenizer.from_file(str(folder / "own" / "tokenizer.json"))
    own_tokenizer.post_processor = None  # type: ignore[assignment]
    return Texts(folder / "tokens", manifest, folder / "model", lm.double(), rows_tokenizer, own_tokenizer)


def losses_of(lm: PreTrainedModel, ids: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with torch.no_grad():
        log_probabilities = torch.log_softmax(lm(torch.tensor([ids])).logits[0, :-1], -1)
    losses = -log_probabilities.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return losses.numpy(), -(log_probabilities.exp() * log_probabilities).sum(1).numpy()


def byte_of(text: str, character: int) -> int:
    return len(text[:character].encode())


def shared(values: NDArray[np.float64], own: list[int], begins: list[int], text: str) -> list[float]:
    """The values of tokens that begin at the characters `own`, for the tokens that begin at `begins`."""
    cuts = [*sorted(set(own) & set(begins)), len(text)]
    found: list[float] = []
    for start, stop in pairwise(cuts):
        total = sum(value for value, begin in zip(values, own, strict=True) if start <= begin < stop)
        inside = [begin for begin in begins if start <= begin < stop]
        for begin in inside:
            after = min((other for other in begins if other > begin), default=len(text))
            part = (byte_of(text, after) - byte_of(text, begin)) / inside.count(begin)
            found.append(total * part / (byte_of(text, stop) - byte_of(text, start)))
    return found


def expected(texts: Texts, ids: NDArray[np.integer]) -> tuple[list[float], list[float], float]:
    """A document's losses and entropies, EOS included, and the sum of the reference's own losses."""
    text = texts.rows_tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    rows, own = texts.rows_tokenizer.encode(text, add_special_tokens=False), texts.own_tokenizer.encode(text)
    assert rows.ids == ids.tolist()
    losses, entropies = losses_of(texts.lm, [BOS, *own.ids, EOS])
    begins, own_begins = ([0, *(start for start, _ in each.offsets[1:])] for each in (rows, own))
    of_losses, of_entropies = (shared(column[:-1], own_begins, begins, text) for column in (losses, entropies))
    return [*of_losses, losses[-1]], [*of_entropies, entropies[-1]], losses.sum()


def targets_in_order(
    scored: Path, manifest: Manifest, column: str
) -> Iterator[tuple[NDArray[np.integer], NDArray[Any]]]:
    """The documents of each part, and the stored values of their tokens and EOS, None's place for a first token."""
    for part in manifest.splits["train"]["code"].parts:
        rows = RowReader(scored, "train", "code", part.name).rows(0, part.rows)
        documents = list(documents_in([rows["tokens"]], manifest.eos_id, manifest.packing.bos))
        stream, values = rows["tokens"][:, 1:].ravel(), rows[column].ravel()
        if manifest.packing.overlap_tokens:
            stream, values = np.append(rows["tokens"][0, 0], stream), np.append(np.nan, values)
        place = 0
        for ids in documents:
            place += int(manifest.packing.bos == "document")
            assert np.array_equal(stream[place : place + len(ids)], ids)
            yield ids, values[place : place + len(ids) + 1].astype(np.float64)
            place += len(ids) + 1


@pytest.fixture(scope="module")
def scored(texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored") / "scored"
    run_job(2, task_of(texts.model, texts.tokens, output, align=True, window=POSITIONS, entropy=True))
    return output


def test_values_are_those_of_a_loop_over_bytes(texts: Texts, scored: Path) -> None:
    compared = 0
    for column in (0, 1):
        for ids, found in targets_in_order(scored, texts.manifest, ("ref_loss", "ref_entropy")[column]):
            theirs = np.array(expected(texts, ids)[column])
            # Of documents without BOS the first token is no target.
            valid = np.isfinite(found) & (found > 0)
            assert valid[1:].all()
            np.testing.assert_allclose(found[valid], theirs[valid], rtol=6e-4, atol=1e-4)
            compared += int(valid.sum())
    assert compared > 2_000


@pytest.mark.parametrize("texts", ["none"], indirect=True)
def test_the_command(texts: Texts, scored: Path, tmp_path: Path) -> None:
    words = (
        "score",
        "--align",
        "--window",
        str(POSITIONS),
        "--batch-rows",
        "4",
        "--entropy",
        "--reference",
        texts.model,
    )
    run_megaslm(*words, texts.tokens, tmp_path / "scored")
    assert rows_of(tmp_path / "scored") == rows_of(scored)


def test_a_document_keeps_the_sum_of_its_losses(texts: Texts, scored: Path) -> None:
    for ids, found in targets_in_order(scored, texts.manifest, "ref_loss"):
        losses, _, total = expected(texts, ids)
        first = 0.0 if np.isfinite(found[0]) and found[0] > 0 else losses[0]
        assert np.nansum(found) + first == pytest.approx(total, rel=1e-3)


def test_provenance_and_cost(texts: Texts, scored: Path) -> None:
    manifest = read_manifest(scored)
    assert manifest.reference is not None
    assert manifest.reference.aligned
    assert manifest.reference.tokenizer_sha256 is not None
    assert (manifest.reference.window, manifest.reference.stride) == (POSITIONS, POSITIONS // 2)
    parts = parse_scores((scored / "scores.json").read_bytes(), "scores.json").parts
    # Each text is read once, in the reference's tokens and an EOS. Documents of two ranges are read twice.
    texts_of = [texts.rows_tokenizer.decode(ids.tolist()) for ids, _ in targets_in_order(scored, manifest, "ref_loss")]
    once = sum(len(texts.own_tokenizer.encode(text).ids) + 1 for text in texts_of)
    assert sum(by.read_tokens or 0 for part in parts for by in part.by) == once


def test_ranges_and_ranks_change_no_byte(
    texts: Texts, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LEAST_TARGETS", 4 * SEQ_LEN)
    for ranks in (1, 2):
        task = task_of(texts.model, texts.tokens, tmp_path / str(ranks), align=True, window=POSITIONS, entropy=True)
        run_job(ranks, task)
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "2")
    values = [
        np.concatenate([values for _, values in targets_in_order(folder, texts.manifest, "ref_loss")])
        for folder in (scored, tmp_path / "1")
    ]
    # Other ranges are other batches.
    np.testing.assert_allclose(*values, rtol=2e-3, atol=1e-4)


def test_a_long_document_is_read_in_windows(texts: Texts, tmp_path: Path) -> None:
    window, stride = 24, 9
    run_job(1, task_of(texts.model, texts.tokens, tmp_path / "scored", align=True, window=window, stride=stride))
    seen = 0
    for ids, found in targets_in_order(tmp_path / "scored", texts.manifest, "ref_loss"):
        text = texts.rows_tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        own = texts.own_tokenizer.encode(text)
        read = [BOS, *own.ids, EOS]
        if len(read) - 1 <= window:
            continue
        losses = []
        for target in range(len(read) - 1):
            start = 0
            while target >= start + window:
                start = min(start + stride, len(read) - 1 - window)
            losses.append(losses_of(texts.lm, read[start : target + 2])[0][-1])
        begins = [0, *(start for start, _ in texts.rows_tokenizer.encode(text, add_special_tokens=False).offsets[1:])]
        theirs = shared(np.array(losses[:-1]), [0, *(start for start, _ in own.offsets[1:])], begins, text)
        np.testing.assert_allclose(found[1:], [*theirs[1:], losses[-1]], rtol=6e-4, atol=1e-4)
        seen += 1
        if seen == 3:
            return
    raise AssertionError("no document is longer than a window")


@pytest.mark.parametrize("texts", ["document"], indirect=True)
def test_its_own_tokenizer_gives_the_losses_of_a_row(texts: Texts, tmp_path: Path) -> None:
    """Where rows have BOS before documents, a document within a row is read as it is without --align."""
    tokenizer = texts.tokens / "tokenizer"
    make_reference(tmp_path / "model", tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_position_embeddings=POSITIONS)
    run_job(1, task_of(tmp_path / "model", texts.tokens, tmp_path / "plain"))
    run_job(1, task_of(tmp_path / "model", texts.tokens, tmp_path / "aligned", align=True, window=POSITIONS))
    compared = 0
    for part in texts.manifest.splits["train"]["code"].parts:
        plain, aligned = (
            RowReader(tmp_path / name, "train", "code", part.name).rows(0, part.rows) for name in ("plain", "aligned")
        )
        for row in range(part.rows):
            [ends] = np.nonzero(plain["tokens"][row] == texts.manifest.eos_id)
            inside = slice(ends[0], ends[-1]) if len(ends) > 1 else slice(0, 0)
            np.testing.assert_allclose(
                aligned["ref_loss"][row, inside], plain["ref_loss"][row, inside], rtol=2e-3, atol=1e-4
            )
            compared += int((plain["ref_loss"][row, inside] > 0).sum())
    assert compared > 50


def reference_with_bos(texts: Texts, folder: Path, bos_id: int) -> PreTrainedModel:
    """A reference with the tokenizer of the rows, which puts another BOS before a text."""
    shutil.copytree(texts.tokens / "tokenizer", folder / "tokenizer")
    stated = {"bos_token": texts.rows_tokenizer.id_to_token(bos_id), "add_bos_token": True}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / "tokenizer" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    return make_reference(
        folder / "model", tokenizer=folder / "tokenizer", vocab_size=VOCAB_SIZE, max_position_embeddings=POSITIONS
    ).double()


@pytest.mark.parametrize("texts", ["document", "row"], indirect=True)
def test_another_bos_than_in_the_rows_needs_alignment(
    texts: Texts, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    """The reference then reads each document behind its own BOS."""
    own = VOCAB_SIZE - 1
    lm = reference_with_bos(texts, tmp_path, own)
    plain = task_of(tmp_path / "model", texts.tokens, tmp_path / "plain")
    says(fail(1, plain, 2, capfd), "--align", f"the BOS {own}")
    run_job(1, task_of(tmp_path / "model", texts.tokens, tmp_path / "aligned", align=True, window=POSITIONS))
    for ids, found in targets_in_order(tmp_path / "aligned", texts.manifest, "ref_loss"):
        theirs, _ = losses_of(lm, [own, *ids.tolist(), texts.manifest.eos_id])
        valid = np.isfinite(found) & (found > 0)
        assert valid[1:].all()
        np.testing.assert_allclose(found[valid], theirs[valid], rtol=6e-4, atol=1e-4)


@pytest.mark.parametrize("texts", ["none"], indirect=True)
def test_a_reference_that_expects_bos_is_warned_of_with_the_way_out(
    texts: Texts, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reference_with_bos(texts, tmp_path, VOCAB_SIZE - 1)
    for align in (False, True):
        run_job(1, task_of(tmp_path / "model", texts.tokens, tmp_path / f"{align}", align=align, window=SEQ_LEN))
        assert ("--align" in capfd.readouterr().out) == (not align)


def test_rows_are_scored_again_before_a_run(texts: Texts, scored: Path, tmp_path: Path) -> None:
    def check(model: Path) -> None:
        check_reference(
            read_manifest(scored), open_dataset(str(scored), str(tmp_path)), domains=["code"], document_isolation=True,
            needs_entropy=True, reference=NamedReference("slm.reference", model), rows=6, device=torch.device("cpu"),
        )  # fmt: skip

    check(texts.model)
    make_reference(
        tmp_path / "other", tokenizer=texts.model, vocab_size=400, max_position_embeddings=POSITIONS, hidden_size=64
    )
    with pytest.raises(ReferenceMismatch):
        check(tmp_path / "other")


def test_what_cannot_be_aligned_is_refused(
    texts: Texts, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    def refused(**settings: int | bool) -> str:
        return fail(1, task_of(texts.model, texts.tokens, tmp_path / "out", **{"align": True, **settings}), 2, capfd)

    says(refused(document_isolation=False), "--no-document-isolation")
    says(refused(window=POSITIONS + 1), f"--window {POSITIONS + 1}", POSITIONS)
    says(refused(window=64, stride=65), "--stride 65", "64")
    says(refused(align=False), texts.model)
    (tmp_path / "bare").mkdir()
    for path in texts.model.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    says(fail(1, task_of(tmp_path / "bare", texts.tokens, tmp_path / "out", align=True), 2, capfd), "tokenizer.json")
    assert not (tmp_path / "out").exists()
