"""A masked dataset trains a run bit for bit as the scored one does, from a sixteenth of the bytes of a loss."""

import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import Manifest, read_manifest, write_manifest
from megaslm.dataset.rows import RowReader
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import DataError, ReferenceMismatch
from megaslm.observe.records import read_validations
from megaslm.training.data_checks import check_scored
from megaslm.training.training_data import open_training_data
from tests.chain import Chain
from tests.forked_cli import call_megaslm, run_megaslm
from tests.messages import Says
from tests.ranks.test_selection_runs import changed, steps_of
from tests.toy import write_config

# What a run knows by the reference's losses alone.
BY_LOSSES = ("threshold", "excess_quantiles")


@pytest.fixture(scope="module")
def masked(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask") / "masked"
    run_megaslm("mask", chain.scored, folder, "--keep-ratio", "0.6")
    return folder


@pytest.fixture
def copy(masked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(masked, tmp_path / "copy"))


def config_of(chain: Chain, run: Path, dataset: Path, **slm: object) -> RunConfig:
    settings = {"criterion": "reference", "scope": "sequence", **slm}
    return changed(chain.slm_config(run), run, data={"train": str(dataset)}, slm=settings)


def test_training_by_bits_is_training_by_losses(chain: Chain, masked: Path, tmp_path: Path) -> None:
    for name, dataset in (("scored", chain.scored), ("masked", masked)):
        config = config_of(chain, tmp_path / name, dataset)
        run_megaslm("train", write_config(tmp_path / f"{name}.yaml", config), world_size=2)
    by_losses, by_bits = steps_of(tmp_path / "scored"), steps_of(tmp_path / "masked")
    assert len(by_bits) == 8
    assert all(step["threshold"] is not None and step["excess_quantiles"] for step in by_losses)
    assert all(step["threshold"] is None and not step["excess_quantiles"] for step in by_bits)
    for step in (*by_losses, *by_bits):
        for name in BY_LOSSES:
            del step[name]
    assert by_bits == by_losses
    one, other = (read_validations(tmp_path / name / "metrics.jsonl") for name in ("scored", "masked"))
    assert one == other
    assert len({record.loss for record in one}) == len(one) == 2


def test_a_bit_takes_a_sixteenth_of_a_loss(chain: Chain, masked: Path) -> None:
    losses = RowReader(chain.scored, "train", "a").rows(0, 35)["ref_loss"]
    bits = RowReader(masked, "train", "a").rows(0, 35)["selected"]
    assert 16 * bits.nbytes == losses.nbytes


def check(chain: Chain, dataset: Path, **slm: object) -> None:
    config = config_of(chain, chain.root / "never", dataset, **slm)
    check_scored(config, open_training_data(config), torch.device("cpu"))


def test_the_mask_of_a_run_passes_and_its_cost_comes_along(chain: Chain, masked: Path) -> None:
    check(chain, masked)
    assert (masked / "cost.json").read_bytes() == (chain.scored / "cost.json").read_bytes()


@pytest.mark.parametrize(
    ("slm", "of_mask", "of_run"),
    [
        ({"criterion": "excess"}, "slm.criterion = reference", "slm.criterion = excess"),
        ({"criterion": "entropy"}, "slm.criterion = reference", "slm.criterion = entropy"),
        ({"scope": "batch"}, "slm.scope = sequence", "slm.scope = batch"),
        ({"keep_ratio": Decimal("0.61")}, "slm.keep_ratio = 0.6", "slm.keep_ratio = 0.61"),
        ({"keep_ratio_warmup_tokens": 5}, "slm.keep_ratio_warmup_tokens = 0", "slm.keep_ratio_warmup_tokens = 5"),
        ({"granularity": "span"}, "slm.granularity = token", "slm.granularity = span"),
        ({"max_ref_loss": 3.0}, "slm.max_ref_loss = None", "slm.max_ref_loss = 3.0"),
    ],
)
def test_another_rule_is_refused(
    chain: Chain, masked: Path, slm: dict[str, object], of_mask: str, of_run: str, says: Says
) -> None:
    with pytest.raises(DataError) as refused:
        check(chain, masked, **slm)
    says(refused, masked, f"for {of_mask};", f" {of_run}:")


def test_another_reference_and_other_rows_are_refused(chain: Chain, copy: Path, tmp_path: Path, says: Says) -> None:
    manifest = read_manifest(copy)
    assert manifest.reference is not None

    def rewrite(**changes: object) -> None:
        assert manifest.reference is not None
        changed_reference = manifest.reference.model_copy(update=changes)
        write_manifest(copy, manifest.model_copy(update={"reference": changed_reference}))

    rewrite(dataset_sha256="0" * 64)
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy)
    says(refused, "0" * 12)
    rewrite(document_isolation=False)
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy)
    says(refused, "document_isolation = False", "model.document_isolation = True")
    rewrite(weights_sha256="1" * 64)
    with pytest.raises(ReferenceMismatch) as refused:
        check(chain, copy)
    says(refused, "1" * 12, "slm.reference = ")


def shifted(chain: Chain, copy: Path) -> None:
    """Writes every mask of the training rows of `a` again, shifted by one target."""
    manifest: Manifest = read_manifest(copy)
    for part in manifest.splits["train"]["a"].parts:
        rows = RowReader(copy, "train", "a", part.name).rows(0, part.rows)
        bits = np.roll(np.unpackbits(rows["selected"].astype(np.uint8), axis=1, bitorder="little"), 1, axis=1)
        folder = copy / "train" / "a" / part.name
        shutil.rmtree(folder)
        with part_writer(folder, RowFormat.of(manifest)) as writer:
            writer.write(rows["tokens"], int(rows["domain"][0]), selected=np.packbits(bits, axis=1, bitorder="little"))


def test_a_mask_that_the_reference_would_not_give_is_refused(chain: Chain, copy: Path, says: Says) -> None:
    config = config_of(chain, chain.root / "never", copy)
    data = open_training_data(config)
    shifted(chain, copy)
    with pytest.raises(ReferenceMismatch) as refused:
        check_scored(config, data, torch.device("cpu"))
    says.without_numbers(refused, "train/a")


def test_masked_and_scored_rows_do_not_mix(chain: Chain, masked: Path, says: Says) -> None:
    streams = {"one": {"dataset": str(masked)}, "two": {"dataset": str(chain.scored)}}
    config = changed(
        chain.slm_config(chain.root / "never"),
        chain.root / "never",
        data={"train": None, "streams": streams},
        slm={"reference": None},
    )
    with pytest.raises(DataError) as refused:
        open_training_data(config)
    says(refused, "selected tokens", "ref_loss tokens")


def test_the_old_name_of_the_criterion_is_read_with_a_warning(chain: Chain, masked: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    said = call_megaslm("mask", chain.scored, folder, "--score", "reference", "--keep-ratio", "0.6")
    assert said.stderr.startswith("warning: ")
    assert "--score" in said.stderr
    assert "--criterion" in said.stderr
    assert read_manifest(folder).mask == read_manifest(masked).mask
    assert "--score" not in call_megaslm("mask", "--help").stdout
    refused = call_megaslm("mask", chain.scored, tmp_path / "other", "--score", "entropy")
    assert refused.returncode == 2  # The dataset has no entropies: --score decides.


def test_what_holds_no_losses_cannot_be_masked(chain: Chain, tmp_path: Path, says: Says) -> None:
    said = run_megaslm("mask", chain.tokens, tmp_path / "masked", expect_status=2)
    says(said, chain.tokens, "ref_loss", "'tokens'")
    assert not (tmp_path / "masked").exists()
