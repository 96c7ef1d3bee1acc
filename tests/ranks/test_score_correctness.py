"""Losses before and after they are stored, against loops in float64 that share no code with MegaSLM; on real text."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import _pytest
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.config.recipe import Recipe
from megaslm.config.section import Split
from megaslm.dataset.manifest import Manifest, Part, Reference, read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.model.reference_model import ReferenceModel
from megaslm.preparing.prepare import prepare
from tests.messages import Says
from tests.scoring import fail, make_reference, run_job, task_of

SEQ_LEN, VOCAB_SIZE = 96, 400
PLACES: list[tuple[Split, str]] = [("train", "source"), ("heldout", "source")]


class Text(NamedTuple):
    """Real text in rows, and a model for it."""

    tokens: Path
    manifest: Manifest
    model: Path
    lm: PreTrainedModel
    expected: dict[tuple[bytes, bool, int, int], tuple[NDArray[np.float64], NDArray[np.float64]]]
    """By row and how it is measured, so that no test computes again what one before it has."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Sources of the running Python; every part ends in padding."""
    folder = tmp_path_factory.mktemp("text")
    sources = [Path(module.__file__) for module in (np.testing, torch.utils.data, pytest) if module.__file__]
    sources += [Path(__file__), *(Path(_pytest.__file__).with_name(name) for name in ("recwarn.py", "tmpdir.py"))]
    recipe = Recipe.model_validate(
        {
            "name": "source",
            "licence": "as its sources",
            "seq_len": SEQ_LEN,
            "tokenizer": {"train_sentencepiece": {"vocab_size": VOCAB_SIZE}},
            "sources": [{"domain": "source", "reader": "text", "paths": [str(path) for path in sources]}],
            "part_bytes": 8_000,
            "heldout_fraction": 0.2,
        }
    )
    manifest = prepare(recipe, folder / "tokens", workers=1)
    tokenizer = folder / "tokens" / "tokenizer"
    lm = make_reference(folder / "model", tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_position_embeddings=SEQ_LEN)
    return Text(folder / "tokens", manifest, folder / "model", lm.double(), {})


def record(manifest: Manifest, **changes: object) -> Reference:
    given = {
        "weights_sha256": "", "name": "", "precision": "fp32", "document_isolation": True, "window": SEQ_LEN,
        "stride": SEQ_LEN, "batch_rows": 4, "dataset_sha256": manifest.tokens_fingerprint(), "entropy": True,
    }  # fmt: skip
    return Reference.model_validate({**given, **changes})


def expected(
    text: Text, row: NDArray[np.integer], *, isolated: bool, window: int, stride: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The losses and entropies of a row's targets, 0 at invalid ones: one forward pass for each context."""
    key = row.tobytes(), isolated, window, stride
    if key not in text.expected:
        text.expected[key] = by_contexts(text, row, isolated=isolated, window=window, stride=stride)
    return text.expected[key]


def by_contexts(
    text: Text, row: NDArray[np.integer], *, isolated: bool, window: int, stride: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    losses, entropies = np.zeros(SEQ_LEN), np.zeros(SEQ_LEN)
    for first, targets in targets_by_context(text, row, isolated=isolated, window=window, stride=stride).items():
        with torch.no_grad():
            logits = text.lm(torch.tensor(row[None, first : targets[-1] + 1].astype(np.int64))).logits[0]
        for target in targets:
            log_probabilities = torch.log_softmax(logits[target - first], -1)
            losses[target] = -log_probabilities[int(row[target + 1])]
            entropies[target] = -(log_probabilities.exp() * log_probabilities).sum()
    return losses, entropies


def targets_by_context(
    text: Text, row: NDArray[np.integer], *, isolated: bool, window: int, stride: int
) -> dict[int, list[int]]:
    """The valid targets in rising order, by the first token that each of them is predicted from."""
    found: dict[int, list[int]] = {}
    for target in range(SEQ_LEN):
        if row[target] == text.manifest.eos_id:
            continue
        # The first window that holds the target; the last ends with the row.
        start = 0
        while target >= start + window:
            start = min(start + stride, SEQ_LEN - window)
        borders = [place + 1 for place in range(start, target) if row[place] == text.manifest.eos_id]
        found.setdefault(borders[-1] if isolated and borders else start, []).append(target)
    return found


def borders(text: Text) -> Iterator[tuple[Split, str, Part, int]]:
    """The first row of every part, and the last, which is padded."""
    for split, domain in PLACES:
        for part in text.manifest.splits[split][domain].parts:
            yield split, domain, part, 0
            yield split, domain, part, part.rows - 1


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(SEQ_LEN, SEQ_LEN), (40, 24)])
def test_before_rounding(text: Text, isolated: bool, window: int, stride: int) -> None:
    described = record(text.manifest, document_isolation=isolated, window=window, stride=stride)
    model = ReferenceModel.load(text.model, described, eos_id=text.manifest.eos_id, device=torch.device("cpu"))
    differences: list[NDArray[np.float64]] = []
    padded = 0
    for split, domain, part, number in borders(text):
        row = RowReader(text.tokens, split, domain, part.name)[number]["tokens"]
        padded += row[-1] == row[-2] == text.manifest.eos_id
        found = model.measure(torch.from_numpy(row.astype(np.int64))[None])
        valid = row[:-1] != text.manifest.eos_id
        for ours, theirs in zip(
            (found.losses, found.entropies),
            expected(text, row, isolated=isolated, window=window, stride=stride),
            strict=True,
        ):
            assert ours is not None
            differences.append(np.abs(ours[0].double().numpy() - theirs)[valid])
    assert padded >= 2
    together = np.concatenate(differences)
    assert np.median(together) < 1e-5
    assert together.max() < 1e-3


@pytest.mark.parametrize(("window", "stride"), [(None, None), (40, 24)])
def test_as_stored(text: Text, tmp_path: Path, window: int | None, stride: int | None) -> None:
    settings = {} if window is None or stride is None else {"window": window, "stride": stride}
    run_job(2, task_of(text.model, text.tokens, tmp_path / "scored", entropy=True, **settings))
    found = read_manifest(tmp_path / "scored").reference
    assert found is not None
    assert (found.window, found.stride) == (window or SEQ_LEN, stride or SEQ_LEN)
    for split, domain, part, number in borders(text):
        row = RowReader(tmp_path / "scored", split, domain, part.name)[number]
        losses, entropies = expected(
            text, row["tokens"], isolated=True, window=window or SEQ_LEN, stride=stride or SEQ_LEN
        )
        np.testing.assert_allclose(row["ref_loss"], losses, rtol=6e-4, atol=1e-4)
        np.testing.assert_allclose(row["ref_entropy"], entropies, rtol=6e-4, atol=1e-4)
        assert (row["ref_loss"][row["tokens"][:-1] == text.manifest.eos_id] == 0).all()


def test_a_model_that_sees_less_than_a_row_needs_a_stride(
    text: Text, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    short = tmp_path / "short"
    make_reference(short, tokenizer=text.tokens / "tokenizer", vocab_size=VOCAB_SIZE, max_position_embeddings=32)
    said = fail(1, task_of(short, text.tokens, tmp_path / "scored"), 2, capfd)
    says(said, short, "32 tokens", SEQ_LEN, "--stride 16")
    said = fail(1, task_of(short, text.tokens, tmp_path / "scored", stride=33), 2, capfd)
    says(said, "--stride 33: ", "32")
    said = fail(1, task_of(short, text.tokens, tmp_path / "scored", window=64, stride=8), 2, capfd)
    says(said, short, "32 tokens", "64")
    run_job(1, task_of(short, text.tokens, tmp_path / "scored", stride=16))
    found = read_manifest(tmp_path / "scored").reference
    assert found is not None
    assert (found.window, found.stride) == (32, 16)


def test_overlapping_windows_come_closer_to_full_context(text: Text) -> None:
    rows = RowReader(text.tokens, "train", "source")
    tokens = torch.from_numpy(rows.rows(0, min(24, len(rows)))["tokens"].astype(np.int64))
    valid = tokens[:, :-1] != text.manifest.eos_id

    def losses(window: int, stride: int) -> torch.Tensor:
        described = record(text.manifest, document_isolation=False, window=window, stride=stride)
        model = ReferenceModel.load(text.model, described, eos_id=text.manifest.eos_id, device=torch.device("cpu"))
        return model.measure(tokens).losses[valid]

    full = losses(SEQ_LEN, SEQ_LEN)
    plain, half, quarter = ((losses(32, stride) - full).abs().mean() for stride in (32, 16, 8))
    assert quarter < half < plain


def test_another_tokenizer_is_refused_by_name(
    text: Text, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    make_reference(tmp_path / "other", vocab_size=VOCAB_SIZE, max_position_embeddings=SEQ_LEN)
    said = fail(1, task_of(tmp_path / "other", text.tokens, tmp_path / "scored"), 2, capfd)
    says(said, tmp_path / "other", text.tokens, text.manifest.tokenizer_sha256[:12])
    assert not (tmp_path / "scored").exists()
