"""Reference losses and models that do not belong to a run are refused, with a message that names both sides."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import TOKENIZER, DomainSplit, Manifest, Part, read_manifest, write_manifest
from megaslm.dataset.remote import DatasetFolder
from megaslm.dataset.rows import RowReader
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import DataError, ModelError, ReferenceMismatch
from megaslm.model.fit import check_model_fits, check_tokenizer_fits, require_tokenizer
from megaslm.training.data_checks import check_reference
from megaslm.training.training_data import NamedReference, open_training_data
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.masked import masked_attention
from tests.messages import Says, line_with
from tests.scoring import make_reference
from tests.toy import make_tokenizer, run_config, write_config


def check(
    chain: Chain,
    dataset: Path,
    *,
    reference: Path | None = None,
    document_isolation: bool = True,
    needs_entropy: bool = False,
) -> None:
    manifest = read_manifest(dataset)
    check_reference(
        manifest,
        DatasetFolder(dataset),
        domains=tuple(manifest.splits["train"]),
        document_isolation=document_isolation,
        needs_entropy=needs_entropy,
        reference=NamedReference("slm.reference", reference or chain.reference),
        rows=8,
        device=torch.device("cpu"),
    )


@pytest.fixture
def copy(chain: Chain, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain.scored, tmp_path / "copy"))


def rewrite(dataset: Path, change: str) -> None:
    """Writes the dataset's training rows again with reference losses that are wrong, and a manifest to match."""
    manifest = read_manifest(dataset)
    row_format = RowFormat(manifest.seq_len, manifest.vocab_size, scored=True)
    train: dict[str, DomainSplit] = {}
    for domain, share in manifest.splits["train"].items():
        parts: list[Part] = []
        for part in share.parts:
            rows = RowReader(dataset, "train", domain, part.name).rows(0, part.rows)
            losses = {"shift": np.roll(rows["ref_loss"], 1, axis=1), "other rows": np.roll(rows["ref_loss"], 1, axis=0)}
            shutil.rmtree(dataset / "train" / domain / part.name)
            with part_writer(dataset / "train" / domain / part.name, row_format) as writer:
                writer.write(rows["tokens"], int(rows["domain"][0]), losses[change])
            parts.append(writer.part)
        merge_index(dataset / "train" / domain, parts)
        train[domain] = share.model_copy(update={"parts": tuple(parts)})
    write_manifest(dataset, manifest.model_copy(update={"splits": {**manifest.splits, "train": train}}))


def test_what_was_scored_passes(chain: Chain, copy: Path) -> None:
    check(chain, copy)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_was_scored_by_masks_passes(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Datasets of releases that isolated documents by an explicit mask stay valid."""
    scored = tmp_path / "scored"
    with monkeypatch.context() as patched:
        patched.setattr("megaslm.model.documents.document_attention", masked_attention)
        run_megaslm("score", "--precision", precision, "--reference", chain.reference, chain.tokens, scored)
    check(chain, scored)


def test_a_dataset_without_entropies_is_refused_where_they_are_needed(chain: Chain, copy: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        check(chain, copy, needs_entropy=True)
    says(refused, copy, "ref_entropy", "score --entropy")


def test_other_arithmetic_than_is_stated(chain: Chain, tmp_path: Path, says: Says) -> None:
    """bf16 moves losses further than rounding does; a dataset that says fp32 is not that."""
    make_reference(tmp_path / "model")
    scored = tmp_path / "scored"
    run_megaslm("score", "--precision", "bf16", "--reference", tmp_path / "model", chain.tokens, scored)
    check(chain, scored, reference=tmp_path / "model")
    manifest = read_manifest(scored)
    assert manifest.reference is not None
    assert manifest.reference.precision == "bf16"
    stated = manifest.reference.model_copy(update={"precision": "fp32"})
    write_manifest(scored, manifest.model_copy(update={"reference": stated}))
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, scored, reference=tmp_path / "model")
    says.without_numbers(refused, "ref_loss", "in fp32")


def test_other_windows_than_are_stated(chain: Chain, copy: Path, says: Says) -> None:
    manifest = read_manifest(copy)
    assert manifest.reference is not None
    stated = manifest.reference.model_copy(update={"window": 8, "stride": 4})
    write_manifest(copy, manifest.model_copy(update={"reference": stated}))
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy)
    says.without_numbers(refused, copy, "ref_loss")


def test_a_reference_that_is_the_model_itself_is_warned_of(chain: Chain, tmp_path: Path, says: Says) -> None:
    """By folder, and as another run's newest checkpoint."""
    origins = ({"from_pretrained": str(chain.reference)}, {"from_run": str(chain.reference_run)})
    for number, origin in enumerate(origins):
        run = run_config(
            tmp_path / f"run-{number}", chain.scored, model={"from_scratch": None, **origin}, train={"objective": "slm"}
        )
        said = run_megaslm("train", write_config(tmp_path / f"{number}.yaml", run))
        says(line_with(said, "warning: "), chain.scored)


def test_a_flash_attention_that_is_not_installed(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    config = write_config(tmp_path / "run.yaml", chain.slm_config(tmp_path / "run"))
    said = run_megaslm("train", config, "--set", "model.flash_attention=FA3", expect_status=2)
    assert "model.flash_attention = FA3" in said
    assert not (tmp_path / "run").exists()
    scoring = ("--reference", chain.reference, chain.tokens, tmp_path / "scored")
    said = run_megaslm("score", "--flash-attention", "FA3", *scoring, world_size=2, expect_status=2)
    assert "--flash-attention FA3" in said
    assert not (tmp_path / "scored").exists()


@pytest.mark.parametrize("change", ["shift", "other rows"])
def test_misplaced_losses(chain: Chain, copy: Path, change: str, says: Says) -> None:
    rewrite(copy, change)
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy)
    says.without_numbers(refused, copy, "row 0: ", "ref_loss")


def test_losses_of_other_tokens(chain: Chain, copy: Path, says: Says) -> None:
    manifest = read_manifest(copy)
    assert manifest.reference is not None
    stale = manifest.reference.model_copy(update={"dataset_sha256": "0" * 64})
    write_manifest(copy, manifest.model_copy(update={"reference": stale}))
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy)
    says(refused, copy, "0" * 12)


def test_other_weights(chain: Chain, copy: Path, tmp_path: Path, says: Says) -> None:
    other = Path(shutil.copytree(chain.reference, tmp_path / "other"))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy, reference=other)
    says(refused, copy, f"slm.reference = {other}")


def test_another_isolation(chain: Chain, copy: Path, says: Says) -> None:
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy, document_isolation=False)
    says(refused, "document_isolation = True", "model.document_isolation = False")


def test_tokens_without_losses(chain: Chain, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        check(chain, chain.tokens)
    says(refused, chain.tokens, "ref_loss")


def test_truncated_losses(copy: Path, tmp_path: Path) -> None:
    shard = next((copy / "train" / "a" / "part-00001").glob("*.mds*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=f"{shard.name} has .* bytes"):
        open_training_data(run_config(tmp_path / "run", copy))


def test_a_part_that_is_gone(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "train" / "b" / "part-00000")
    with pytest.raises(DataError, match="part-00000"):
        open_training_data(run_config(tmp_path / "run", copy))


def test_other_rows_than_the_run_wants(chain: Chain, tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        open_training_data(run_config(tmp_path / "run", chain.tokens, data={"seq_len": 32}))
    says(refused, chain.tokens, "16 targets", "data.seq_len = 32")


def test_a_domain_that_is_not_there(chain: Chain, tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        open_training_data(run_config(tmp_path / "run", chain.tokens, data={"domains": ["a", "c"]}))
    says(refused, chain.tokens, " c;", "a, b")


def test_another_tokenizer(chain: Chain, tmp_path: Path, says: Says) -> None:
    other = tmp_path / "model"
    make_tokenizer(other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["w5"], vocab["w6"] = vocab["w6"], vocab["w5"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as refused:
        check_tokenizer_fits(
            other, read_manifest(chain.tokens), tokenizer=chain.tokens / TOKENIZER, dataset=chain.tokens
        )
    says(refused, other, chain.tokens)
    with pytest.raises(DataError) as refused:
        require_tokenizer(other, read_manifest(chain.tokens), tokenizer=chain.tokens / TOKENIZER, dataset=chain.tokens)
    says(refused, other, "--align")


def test_another_vocabulary(chain: Chain, says: Says) -> None:
    manifest: Manifest = read_manifest(chain.tokens).model_copy(update={"vocab_size": 1000})
    with pytest.raises(ModelError) as refused:
        check_model_fits(
            AutoConfig.from_pretrained(chain.reference), manifest, model=str(chain.reference), dataset=chain.tokens
        )
    says(refused, chain.reference, "64", chain.tokens, "1000")
