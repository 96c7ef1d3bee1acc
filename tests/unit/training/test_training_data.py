"""Datasets are opened under the settings that name them, and refused where they do not belong together."""

from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import write_manifest
from megaslm.errors import DataError
from megaslm.storage.uploads import write_bytes
from megaslm.training.training_data import fetch_descriptions, open_training_data
from tests.messages import Says
from tests.toy import make_dataset, run_config


@pytest.fixture
def web(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "web", {("train", "a"): [12], ("train", "b"): [8]})
    return tmp_path / "web"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "code", {("train", "python"): [9], ("heldout", "c"): [3]}, seed=1)
    return tmp_path / "code"


def streams_config(web: Path, code: Path, **code_settings: object) -> RunConfig:
    streams = {"web": {"dataset": str(web)}, "code": {"dataset": str(code), **code_settings}}
    return run_config(Path("run"), web, data={"train": None, "streams": streams})


def test_one_dataset_keeps_its_domains_names(web: Path) -> None:
    config = run_config(Path("run"), web, slm={"reference": "models/ref"})
    data = open_training_data(config)
    (dataset,) = data.datasets
    assert (dataset.setting, dataset.source.path, dataset.domains) == ("data.train", web, ("a", "b"))
    assert dataset.reference is not None
    assert (dataset.reference.setting, dataset.reference.folder) == ("slm.reference", Path("models/ref"))
    assert data.mixture.domains == ("a", "b")
    assert {stream.proportion for stream in data.mixture.streams} == {None}


def test_streams_have_settings_and_references_of_their_own(web: Path, code: Path) -> None:
    data = open_training_data(streams_config(web, code, reference="models/code", repeat=2.0))
    assert [dataset.setting for dataset in data.datasets] == ["data.streams.web", "data.streams.code"]
    first, second = (dataset.reference for dataset in data.datasets)
    assert first is None
    assert second is not None
    assert (second.setting, second.folder) == ("data.streams.code.reference", Path("models/code"))
    assert data.mixture.domains == ("web/a", "web/b", "code")
    # Twice its 9 rows beside the 20 of the web.
    assert data.mixture.streams[-1].proportion == pytest.approx(18 / 38)


def test_a_domain_without_training_rows_is_refused_by_its_setting(web: Path, code: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        open_training_data(streams_config(web, code, domains=["c"]))
    says(refused, "data.streams.code.domains", "python")


def test_other_vocabularies_and_rows_are_refused(web: Path, tmp_path: Path, says: Says) -> None:
    make_dataset(tmp_path / "large", {("train", "a"): [9]}, vocab_size=100)
    with pytest.raises(DataError) as refused:
        open_training_data(streams_config(web, tmp_path / "large"))
    says(refused, "web", "large", "64", "100")
    make_dataset(tmp_path / "long", {("train", "a"): [9]}, seq_len=32)
    with pytest.raises(DataError) as refused:
        open_training_data(streams_config(web, tmp_path / "long"))
    says(refused, "long", "32", "data.seq_len = 16")


def test_a_share_that_cannot_be_drawn_is_refused(web: Path, code: Path, says: Says) -> None:
    config = streams_config(web, code, repeat=1e-3)
    with pytest.raises(DataError) as refused:
        open_training_data(config)
    says(refused, "code", "9 rows", "0.00045", "24 rows")


def test_a_dataset_that_lacks_a_shard_is_refused(web: Path, code: Path) -> None:
    next((code / "train").rglob("*.mds*")).unlink()
    with pytest.raises(DataError, match="code/train/python"):
        open_training_data(streams_config(web, code))


def test_another_eos_of_the_same_tokenizer_is_refused(web: Path, tmp_path: Path, says: Says) -> None:
    made = make_dataset(tmp_path / "other", {("train", "a"): [9]})
    write_manifest(tmp_path / "other", made.model_copy(update={"eos_id": 3}))
    with pytest.raises(DataError) as refused:
        open_training_data(streams_config(web, tmp_path / "other"))
    says(refused, "web", "other", "EOS 2", "EOS 3")


def test_a_host_that_finds_another_dataset_than_the_first_rank_is_refused(web: Path, tmp_path: Path) -> None:
    url = "memory://test-training-data/web"

    def put(dataset: Path) -> None:
        for path in dataset.rglob("*"):
            if path.is_file():
                write_bytes(f"{url}/{path.relative_to(dataset).as_posix()}", path.read_bytes())

    def config_on(host: str) -> RunConfig:
        return run_config(Path("run"), web, data={"train": url, "fetch": {"cache": str(tmp_path / host)}})

    put(web)
    data = open_training_data(config_on("first"))
    for host in ("first", "second"):
        fetch_descriptions(config_on(host), data)
    make_dataset(tmp_path / "other", {("train", "a"): [12], ("train", "b"): [8]}, seed=1)
    put(tmp_path / "other")
    with pytest.raises(DataError) as refused:
        fetch_descriptions(config_on("third"), data)
    assert url in str(refused.value)
