"""What `init` finds in a model and text, and what it writes."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import load_file

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError, DataError, MegaSLMError, ModelError
from megaslm.scaffold.init import Project, init
from megaslm.scaffold.sizes import model_sizes, row_length, run_sizes
from megaslm.scaffold.text_look import look_at_text
from tests.messages import Says
from tests.own_text import DOCUMENTS, PROBLEMS, make_model, write_corpus, write_problems


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("own") / "model")


def project_of(model: Path, folder: Path) -> Project:
    corpus, curated = write_corpus(folder / "web.jsonl"), write_problems(folder / "good.jsonl")
    return init(model, [str(corpus)], [str(curated)], folder / "project")


def test_it_finds_the_sizes_and_the_fields(model: Path, tmp_path: Path) -> None:
    project = project_of(model, tmp_path)
    assert (project.family, project.positions, project.bos) == ("llama", 256, "document")
    assert project.parameters == sum(weight.numel() for weight in load_file(model / "model.safetensors").values())
    assert (project.corpus.documents, project.curated.documents) == (DOCUMENTS, PROBLEMS)
    assert project.corpus.taken_from == {"text_field": "text"}
    assert project.corpus.fields == ("url", "text")
    assert project.curated.taken_from == {"template": "{question}\n{answer}"}


def test_what_it_writes_is_read_and_hangs_together(model: Path, tmp_path: Path) -> None:
    project = project_of(model, tmp_path)
    recipes = [load(Recipe, project.folder / f"{name}.yaml").value for name in ("corpus", "curated")]
    reference, clm, slm = (
        load(RunConfig, project.folder / f"{name}.yaml").value for name in ("reference", "clm", "slm")
    )
    assert {recipe.seq_len for recipe in recipes} == {reference.data.seq_len} == {slm.data.seq_len}
    assert {recipe.bos for recipe in recipes} == {"document"}
    assert (reference.train.epochs, clm.train.epochs, slm.train.objective) == (3, 1, "slm")
    written = " ".join(project.commands)
    for folder in (reference.data.train, clm.data.train, slm.data.train, slm.slm.reference, slm.run_dir):
        assert f" {folder}" in written


def test_a_tokenizer_without_bos_gives_rows_without(tmp_path: Path) -> None:
    assert project_of(make_model(tmp_path / "model", bos=False), tmp_path).bos == "none"


@given(
    parameters=st.integers(1, 10**12),
    positions=st.integers(64, 10**6),
    corpus_tokens=st.integers(1, 10**13),
    curated_tokens=st.integers(1, 10**13),
)
def test_all_sizes_fit_one_another(parameters: int, positions: int, corpus_tokens: int, curated_tokens: int) -> None:
    seq_len = row_length(parameters, positions, min(corpus_tokens, curated_tokens))
    assert 64 <= seq_len <= positions
    for tokens in (corpus_tokens, curated_tokens):
        run = run_sizes(tokens, seq_len)
        rows = run.batch_tokens // seq_len
        assert rows * seq_len == run.batch_tokens <= 2**20
        assert rows % 8 == 0
        assert all(
            tokens % run.batch_tokens == 0
            for tokens in (run.warmup_tokens, run.validation_tokens, run.checkpoint_tokens)
        )
    assert model_sizes(parameters, seq_len).micro_batch_rows >= 1


RECORDS = {
    "usual name": ([{"id": "1", "content": "some text"}], {"text_field": "content"}),
    "longest": (
        [{"title": "a", "abstract": "long enough"}, {"title": "b", "abstract": "a"}],
        {"text_field": "abstract"},
    ),
    "pair": ([{"instruction": "a", "input": "", "output": "b"}], {"template": "{instruction}\n{output}"}),
    "chat": ([{"messages": [{"role": "user", "content": "a"}], "text": "b"}], {"messages_field": "messages"}),
    "other chat": ([{"conversations": [{"from": "human", "value": "a"}]}], {"messages_field": "conversations"}),
    "not in all": ([{"text": "a", "body": "b"}, {"text": None, "body": "c"}], {"text_field": "body"}),
}


@pytest.mark.parametrize(("records", "taken_from"), RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_text_is_found_in_records(
    records: list[dict[str, object]], taken_from: dict[str, str], ending: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{ending}"
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif ending == "json":
        path.write_text(json.dumps(records))
    else:
        path.write_bytes(gzip.compress(lines) if ending.endswith("gz") else lines)
    look = look_at_text([str(path)], model)
    assert (look.reader, look.taken_from) == (ending.removesuffix(".gz"), taken_from)
    assert look.documents == len(records)


def test_plain_text_is_a_document_per_file(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("some words")
    look = look_at_text([str(tmp_path)], model)
    assert (look.reader, look.taken_from, look.files, look.documents) == ("text", {}, 2, 2)


def test_what_cannot_be_read_is_said(model: Path, tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "numbers.jsonl").write_text('{"a": 1, "b": [2]}\n')
    corpus, folder = str(write_corpus(tmp_path / "web.jsonl")), tmp_path / "project"
    wrong: list[tuple[type[MegaSLMError], Path, str]] = [
        (DataError, model, "a.doc"),
        (DataError, model, "missing"),
        (ConfigError, model, "numbers.jsonl"),
        (ModelError, tmp_path / "no-model", "web.jsonl"),
    ]
    for kind, folder_of_model, name in wrong:
        with pytest.raises(kind) as raised:
            init(folder_of_model, [str(tmp_path / name)], [corpus], folder)
        says(raised.value, name if folder_of_model == model else "no-model")
        assert not list(tmp_path.glob("*project*"))


def test_a_folder_that_exists_is_left_alone(model: Path, tmp_path: Path, says: Says) -> None:
    (tmp_path / "project").mkdir()
    with pytest.raises(ConfigError) as raised:
        project_of(model, tmp_path)
    says(raised.value, "project")
