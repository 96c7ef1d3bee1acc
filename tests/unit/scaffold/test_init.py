"""What `init` finds in a model and text, and what it writes."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import load_file

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError, DataError, MegaSLMError, ModelError
from megaslm.scaffold.init import Project, init
from megaslm.scaffold.sizes import learning_rates, model_sizes, row_length, run_sizes
from megaslm.scaffold.text_look import look_at_text
from megaslm.scaffold.view import show_project
from tests.messages import Says
from tests.model_folders import edit_weights
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


def test_learning_rates_fit_the_weights(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of `model` are new. Comments name the rate of the others."""
    trained = shutil.copytree(model, tmp_path / "trained")
    edit_weights(trained, model__norm__weight=torch.linspace(0.5, 1.5, 32))
    rates = {}
    for folder in (model, trained):
        (tmp_path / f"of-{folder.name}").mkdir()
        project = project_of(folder, tmp_path / f"of-{folder.name}")
        runs = [load(RunConfig, project.folder / f"{name}.yaml").value for name in ("reference", "clm", "slm")]
        rates[folder] = [run.train.lr for run in runs]
        show_project(project)
        assert ("untrained" in capsys.readouterr().out) == (folder == model)
    assert all(new >= 5 * old for new, old in zip(rates[model], rates[trained], strict=True))
    for folder, other in ((model, trained), (trained, model)):
        written = (tmp_path / f"of-{folder.name}/project/reference.yaml").read_text()
        (comment,) = [line.partition("#")[2] for line in written.splitlines() if line.startswith("  lr:")]
        assert comment.endswith(f" {rates[other][0]}")


@pytest.mark.parametrize("parameters", [10_000_000, 1_100_000_000, 7_200_000_000])
def test_new_weights_are_trained_at_a_higher_rate_of_any_size(parameters: int) -> None:
    new, trained = (learning_rates(parameters, untrained=untrained) for untrained in (True, False))
    assert new.reference_lr == new.lr >= 5 * trained.lr
    assert trained.lr > trained.reference_lr


@pytest.mark.parametrize(("parameters", "stage", "recompute"), [(1_100_000_000, 2, "none"), (7_200_000_000, 3, "full")])
def test_a_larger_model_is_divided_further(parameters: int, stage: int, recompute: str) -> None:
    sizes = model_sizes(parameters, 2048)
    assert (sizes.zero_stage, sizes.recompute) == (stage, recompute)
    assert sizes.bucket_elements <= 200_000_000


def test_what_it_writes_is_read_and_hangs_together(model: Path, tmp_path: Path) -> None:
    project = project_of(model, tmp_path)
    recipes = [load(Recipe, project.folder / f"{name}.yaml").value for name in ("corpus", "curated")]
    reference, clm, slm = (
        load(RunConfig, project.folder / f"{name}.yaml").value for name in ("reference", "clm", "slm")
    )
    assert {recipe.seq_len for recipe in recipes} == {reference.data.seq_len} == {slm.data.seq_len}
    assert {recipe.bos for recipe in recipes} == {"document"}
    assert (reference.train.epochs, clm.train.epochs, slm.train.objective) == (3, 1, "slm")
    batch_rows = max(run.train.global_batch_tokens for run in (reference, clm)) // reference.data.seq_len
    assert reference.train.micro_batch_rows == clm.train.micro_batch_rows <= batch_rows
    # 20 times, of what is not held out.
    (held, _) = (recipe.heldout_fraction for recipe in recipes)
    assert held > 0
    assert project.corpus.trained_tokens == round(project.corpus.tokens * (1 - held))
    assert clm.train.global_batch_tokens is not None
    assert clm.validation.every_tokens is not None
    assert abs(clm.validation.every_tokens - project.corpus.trained_tokens / 20) <= clm.train.global_batch_tokens / 2
    written = " ".join(project.commands)
    for folder in (reference.data.train, clm.data.train, slm.data.train, slm.slm.reference, slm.run_dir):
        assert f" {folder}" in written


def test_the_commands_start_the_launcher_from_any_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = project_of(model, tmp_path)
    (launched,) = {command.split()[0] for command in project.commands if " train " in command}
    assert Path(launched).is_file()


def test_a_run_is_shortened_by_settings_of_the_command(model: Path, tmp_path: Path) -> None:
    """As docs/tutorial.md says."""
    folder = project_of(model, tmp_path).folder
    shorter = ["train.epochs=null", "train.total_tokens=4_096"]
    for name in ("reference", "clm", "slm"):
        train = load(RunConfig, folder / f"{name}.yaml", shorter).value.train
        assert (train.epochs, train.total_tokens) == (None, 4096)


def test_comments_stand_in_one_column_within_a_section(model: Path, tmp_path: Path) -> None:
    lines = (project_of(model, tmp_path).folder / "reference.yaml").read_text().splitlines()
    section = lines[lines.index("train:") + 1 : lines.index("zero:")]
    assert len({line.index("  # ") + len("  # ") for line in section if "#" in line}) == 1
    assert not any("\t" in line for line in lines)


def test_a_tokenizer_without_bos_gives_rows_without(tmp_path: Path) -> None:
    assert project_of(make_model(tmp_path / "model", bos=False), tmp_path).bos == "none"


@given(
    parameters=st.integers(1, 10**12),
    positions=st.integers(1, 10**6),
    corpus_tokens=st.integers(1, 10**13),
    curated_tokens=st.integers(1, 10**13),
)
def test_all_sizes_fit_one_another(parameters: int, positions: int, corpus_tokens: int, curated_tokens: int) -> None:
    seq_len = row_length(parameters, positions, min(corpus_tokens, curated_tokens))
    assert min(64, positions) <= seq_len * 2 - 1
    assert seq_len <= positions
    for tokens in (corpus_tokens, curated_tokens):
        run = run_sizes(tokens, seq_len)
        rows = run.batch_tokens // seq_len
        assert rows * seq_len == run.batch_tokens <= 2**20
        assert rows % 8 == 0
        assert run.warmup_tokens == 0 or run.warmup_tokens * 5 < tokens
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
    "within an object": (
        [{"id": "a", "meta": {"url": "u", "raw": {"body of it": "long enough"}}}],
        {"text_field": "meta.raw.body of it"},
    ),
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


def test_files_at_the_front_may_be_empty(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    write_corpus(tmp_path / "b.jsonl")
    look = look_at_text([str(tmp_path)], model)
    assert (look.files, look.documents, look.taken_from) == (2, DOCUMENTS, {"text_field": "text"})


def test_plain_text_is_a_document_per_file(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("some words")
    look = look_at_text([str(tmp_path)], model)
    assert (look.reader, look.taken_from, look.files, look.documents) == ("text", {}, 2, 2)


@pytest.mark.parametrize("name", ["it's {a} [1]*", "a: b #c", "\n\u2028\x85 x: y", "é\U0001f600\t", "yes", "- 1"])
def test_any_name_is_read_back_as_it_is(name: str, model: Path, tmp_path: Path) -> None:
    records = [{name: "some words", "other\nfield: 1": 2}] * 30
    corpus = tmp_path / name / "web.jsonl"
    corpus.parent.mkdir()
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    folder = tmp_path / f"project {name}"
    init(model, [str(corpus)], [str(write_problems(tmp_path / "good.jsonl"))], folder)
    (source,) = load(Recipe, folder / "corpus.yaml").value.sources
    assert (source.paths, source.text_field) == ((str(corpus),), name)
    assert load(RunConfig, folder / "slm.yaml").value.run_dir == f"{folder}/runs/slm"


def test_of_few_documents_none_is_held_out_and_no_run_measures_them(
    model: Path, tmp_path: Path, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/web.jsonl").write_text('{"text": "some words"}\n' * 19)
    (tmp_path / "mixed/notes.txt").write_text("a note")
    project = init(
        model, [str(tmp_path / "mixed")], [str(write_problems(tmp_path / "good.jsonl"))], tmp_path / "project"
    )
    assert load(Recipe, project.folder / "corpus.yaml").value.heldout_fraction == 0
    assert load(Recipe, project.folder / "curated.yaml").value.heldout_fraction > 0
    assert set(load(RunConfig, project.folder / "slm.yaml").value.validation.sets) == {"curated"}
    show_project(project)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 3
    says("\n".join(warnings), "1 text file", "19 documents", "512")


def test_files_of_both_texts_are_warned_of(
    model: Path, tmp_path: Path, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one of the two names a folder or a link."""
    (tmp_path / "texts").mkdir()
    for name in ("a", "b", "web"):
        write_corpus(tmp_path / f"texts/{name}.jsonl")
    (tmp_path / "c.jsonl").symlink_to("texts/a.jsonl")
    curated = [str(tmp_path / "c.jsonl"), str(tmp_path / "texts/b.jsonl")]
    project = init(model, [str(tmp_path / "texts")], curated, tmp_path / "project")
    assert project.in_both == tuple(curated)
    show_project(project)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    says(warning, curated[0], "1 other file")


def test_a_folder_that_cannot_be_made_is_said_and_nothing_is_left(model: Path, tmp_path: Path, says: Says) -> None:
    corpus = str(write_corpus(tmp_path / "web.jsonl"))
    (tmp_path / "link").symlink_to("nowhere")
    before = set(tmp_path.rglob("*"))
    for folder in (tmp_path / "web.jsonl" / "project", tmp_path / "link"):
        with pytest.raises(ConfigError) as raised:
            init(model, [corpus], [corpus], folder)
        says(raised.value, folder)
    assert set(tmp_path.rglob("*")) == before


def test_what_cannot_be_read_is_said(model: Path, tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "numbers.jsonl").write_text('{"a": 1, "b": [2]}\n')
    corpus, folder = str(write_corpus(tmp_path / "web.jsonl")), tmp_path / "project"
    wrong: list[tuple[type[MegaSLMError], Path, str]] = [
        (DataError, model, "a.doc"),
        (DataError, model, "missing"),
        (DataError, model, "empty.jsonl"),
        (ConfigError, model, "numbers.jsonl"),
        (ModelError, tmp_path / "no-model", "web.jsonl"),
    ]
    for kind, folder_of_model, name in wrong:
        with pytest.raises(kind) as raised:
            init(folder_of_model, [str(tmp_path / name)], [corpus], folder)
        says(raised.value, name if folder_of_model == model else "no-model")
        assert not list(tmp_path.glob("*project*"))
    with pytest.raises(DataError) as raised:
        init(model, [corpus], [" "], folder)
    says(raised.value, "--curated")


def test_a_folder_that_exists_is_left_alone(model: Path, tmp_path: Path, says: Says) -> None:
    (tmp_path / "project").mkdir()
    with pytest.raises(ConfigError) as raised:
        project_of(model, tmp_path)
    says(raised.value, "project")
