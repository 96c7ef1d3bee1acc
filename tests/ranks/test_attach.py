"""Attached columns from the command line to a run: what is documented, what is trained on, what scoring keeps."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.dataset.rows import RowReader, unpack_mask
from megaslm.errors import DataError
from tests.chain import Chain
from tests.columns import write_column
from tests.forked_cli import run_megaslm
from tests.inspected import make_inspected
from tests.messages import Says, line_with
from tests.ranks.test_mask import check, config_of
from tests.ranks.test_selection_runs import changed, steps_of
from tests.toy import SEQ_LEN, write_config

ROOT = Path(__file__).resolve().parents[2]


def column_of(dataset: Path, name: str) -> np.ndarray:
    """The training rows of all domains."""
    rows = [RowReader(dataset, "train", domain) for domain in read_manifest(dataset).splits["train"]]
    return np.concatenate([reader.rows(0, len(reader))[name] for reader in rows])


@pytest.fixture(scope="module")
def attached(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens with the bits of a mask, as a column by row."""
    folder = tmp_path_factory.mktemp("attach")
    run_megaslm("mask", chain.scored, folder / "masked", "--keep-ratio", "0.6")
    bits = unpack_mask(column_of(folder / "masked", "selected"), SEQ_LEN)
    row, position = bits.nonzero()
    columns = {"row": row, "position": position, "value": np.ones(len(row), bool)}
    file = write_column(folder / "column.parquet", chain.tokens, columns, types={"value": pa.bool_()})
    run_megaslm("attach", chain.tokens, file, "--as", "selected", "--out", folder / "attached")
    assert np.array_equal(column_of(folder / "attached", "selected"), column_of(folder / "masked", "selected"))
    return folder / "attached"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_by_an_attached_mask_is_the_run_by_a_mask(
    chain: Chain, attached: Path, tmp_path: Path, ranks: int
) -> None:
    runs = {"masked": {}, "attached": {"criterion": "selected", "scope": "batch", "keep_ratio": "1"}}
    for name, slm in runs.items():
        config = config_of(chain, tmp_path / name, attached.parent / name, **slm)
        run_megaslm("train", write_config(tmp_path / f"{name}.yaml", config), world_size=ranks)
    by_rule, by_column = (steps_of(tmp_path / name) for name in runs)
    assert len(by_column) == 8
    assert by_column == by_rule


def test_a_mask_is_asked_for_before_the_run(chain: Chain, attached: Path, tmp_path: Path, says: Says) -> None:
    check(chain, attached, criterion="selected")
    with pytest.raises(DataError) as refused:
        check(chain, chain.tokens, criterion="selected")
    says(refused, chain.tokens, "'tokens'", "slm.criterion selected")
    with pytest.raises(DataError) as refused:
        check(chain, attached)
    says(refused, attached, "ref_loss", "slm.criterion selected")
    config = config_of(chain, tmp_path / "run", chain.tokens, criterion="selected")
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    says(line_with(said, "slm.criterion selected"), "data.train", chain.tokens)


def test_scoring_keeps_what_is_attached(chain: Chain, tmp_path: Path) -> None:
    columns = {"row": [0, 30], "position": [3, 0], "value": [2.5, -1.0]}
    file = write_column(tmp_path / "column.parquet", chain.tokens, columns)
    run_megaslm("attach", chain.tokens, file, "--as", "weight", "--out", tmp_path / "weight")
    run_megaslm("score", "--reference", chain.reference, tmp_path / "weight", tmp_path / "scored", world_size=2)
    for name, made_from in (("weight", tmp_path / "weight"), ("ref_loss", chain.scored), ("tokens", chain.tokens)):
        assert np.array_equal(column_of(tmp_path / "scored", name), column_of(made_from, name))
    assert read_manifest(tmp_path / "scored").columns == read_manifest(tmp_path / "weight").columns
    run_megaslm("verify", tmp_path / "scored")
    config = changed(chain.slm_config(tmp_path / "run"), tmp_path / "run", data={"train": str(tmp_path / "scored")})
    run_megaslm("train", write_config(tmp_path / "run.yaml", config))
    assert len(steps_of(tmp_path / "run")) == 8


def fingerprint(manifest: Manifest) -> str:
    return manifest.tokens_fingerprint()[:12]


def test_the_documented_column_is_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.chdir(tmp_path)
    web = make_inspected(Path("datasets/web"), scored=False).folder
    (code,) = (
        code
        for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text("utf-8"), re.DOTALL)
        if "weights.parquet" in code
    )
    shown = run_megaslm("inspect", web)
    assert f"tokens {fingerprint(read_manifest(web))}" in shown
    exec(code.replace("TOKENS", fingerprint(read_manifest(web))), {})
    run_megaslm("attach", web, "weights.parquet", "--as", "weight", "--out", "datasets/web-weighted")
    shown = run_megaslm("inspect", "datasets/web-weighted")
    says(line_with(shown, "weights.parquet"), "weight", "2 lines", "7 targets", "1 elsewhere")
    weights = column_of(Path("datasets/web-weighted"), "weight")
    # The first token of the dataset is no target.
    assert [int((weights == value).sum()) for value in (0.5, 2.0)] == [3, 4]
    run_megaslm("verify", "datasets/web-weighted")

    # By default the dataset is written beside its source.
    run_megaslm("attach", web, "weights.parquet", "--as", "weight", "--default", "0")
    assert read_manifest(Path("datasets/web-weight")).columns["weight"].default == 0
    said = run_megaslm("attach", "datasets/web-weight", "weights.parquet", "--as", "weight", expect_status=2)
    says(line_with(said, "already"), "weights.parquet", "datasets/web-weight")
    exec(code.replace("TOKENS", "0123456789ab"), {})
    said = run_megaslm("attach", web, "weights.parquet", "--as", "weight", "--out", "other", expect_status=2)
    says(line_with(said, "0123456789ab"), "weights.parquet", "datasets/web")
    assert not Path("other").exists()
