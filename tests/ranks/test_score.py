"""The scoring job: exact, and the same on any number of ranks."""

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.model.documents import CPU_KERNEL
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.toy import EOS_ID, SEQ_LEN

PLACES = [("train", "a"), ("train", "b"), ("heldout", "a")]


def predictions(lm: PreTrainedModel, row: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """Each valid target's place in a row and the log-probabilities (V,) there, from its document's tokens alone."""
    ends = np.flatnonzero(row[:SEQ_LEN] == EOS_ID).tolist()
    for start, end in zip([0, *(place + 1 for place in ends)], [*ends, SEQ_LEN], strict=True):
        if start < end:
            with torch.no_grad():
                logits = lm(torch.tensor(row[None, start:end].astype(np.int64))).logits[0]
            yield from zip(range(start, end), torch.log_softmax(logits, -1), strict=True)


def test_one_rank_writes_what_two_wrote(chain: Chain, tmp_path: Path) -> None:
    alone = tmp_path / "scored"
    said = run_megaslm("score", "--reference", chain.reference, chain.tokens, alone)
    assert CPU_KERNEL in said
    assert read_manifest(alone).splits == read_manifest(chain.scored).splits
    for split, domain in PLACES:
        ours, theirs = RowReader(alone, split, domain), RowReader(chain.scored, split, domain)  # type: ignore[arg-type]
        assert np.array_equal(ours.rows(0, len(ours))["ref_loss"], theirs.rows(0, len(theirs))["ref_loss"])


def test_rows_are_copied_in_order_with_the_losses_of_an_independent_loop(chain: Chain) -> None:
    lm = AutoModelForCausalLM.from_pretrained(chain.reference).double()
    for split, domain in PLACES:
        tokens = RowReader(chain.tokens, split, domain)  # type: ignore[arg-type]
        scored = RowReader(chain.scored, split, domain)  # type: ignore[arg-type]
        assert len(tokens) == len(scored)
        for number in range(len(tokens)):
            row, stored = tokens[number]["tokens"], scored[number]
            assert np.array_equal(row, stored["tokens"])
            expected = np.zeros(SEQ_LEN)
            for place, log_probabilities in predictions(lm, row):
                expected[place] = -log_probabilities[int(row[place + 1])]
            assert stored["ref_loss"].dtype == np.float16
            np.testing.assert_allclose(stored["ref_loss"], expected, rtol=2e-3, atol=1e-5)


def test_entropies_are_those_of_an_independent_loop(chain: Chain, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    run_megaslm("score", "--entropy", "--reference", chain.reference, chain.tokens, scored)
    manifest = read_manifest(scored)
    assert manifest.reference is not None
    assert manifest.reference.entropy
    check_layout(scored)
    lm = AutoModelForCausalLM.from_pretrained(chain.reference).double()
    for split, domain in PLACES:
        rows = RowReader(scored, split, domain)  # type: ignore[arg-type]
        for part in manifest.splits[split][domain].parts:  # type: ignore[index]
            column = RowReader(scored, split, domain, part.name).rows(0, part.rows)["ref_entropy"]  # type: ignore[arg-type]
            assert part.ref_entropy_sha256 == hashlib.sha256(column.tobytes()).hexdigest()
        for number in range(len(rows)):
            row = rows[number]
            expected = np.zeros(SEQ_LEN)
            for place, log_probabilities in predictions(lm, row["tokens"]):
                expected[place] = -(log_probabilities.exp() * log_probabilities).sum()
            assert row["ref_entropy"].dtype == np.float16
            np.testing.assert_allclose(row["ref_entropy"], expected, rtol=6e-4, atol=1e-5)


def test_layers_are_compiled_when_told(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph leaves a file."""
    graphs = tmp_path / "graphs"
    graphs.mkdir()

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        (graphs / str(id(graph))).touch()
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    for setting, count in (("off", 0), ("on", 1)):
        scored = tmp_path / setting
        run_megaslm("score", "--compile", setting, "--reference", chain.reference, chain.tokens, scored)
        assert len(list(graphs.iterdir())) == count
        check_layout(scored)


def test_another_job_does_not_join_what_was_scored(chain: Chain, tmp_path: Path, says: Says) -> None:
    scored = Path(shutil.copytree(chain.scored, tmp_path / "scored"))
    said = run_megaslm("score", "--entropy", "--reference", chain.reference, chain.tokens, scored, expect_status=2)
    says(line_with(said, scored, "reference.entropy = False there, True here"))


def test_the_manifest_names_the_reference(chain: Chain) -> None:
    manifest = read_manifest(chain.scored)
    assert manifest.kind == "scored"
    assert manifest.reference is not None
    assert manifest.reference.name == "reference"
    assert manifest.reference.attention == CPU_KERNEL
    assert manifest.reference.dataset_sha256 == read_manifest(chain.tokens).tokens_fingerprint()
