"""What a dry run finds of a verb's inputs: all that is missing, at once, and what this host cannot see."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megaslm.config.load import DEFAULT, Loaded, load
from megaslm.config.recipe import Recipe
from megaslm.config.run_files import COMPLETE, COMPLETE_CHECKPOINTS, CONFIG
from megaslm.config.schema import RunConfig
from megaslm.corpus.tasks import TaskReader, plan_tasks
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import DataError, InputError
from megaslm.health.disk import Disk
from megaslm.launch.findings import Findings, Reach
from megaslm.launch.inputs import (
    look_at_export,
    look_at_fields,
    look_at_masking,
    look_at_output,
    look_at_project,
    look_at_run,
    look_at_scoring,
    look_at_text,
)
from megaslm.training.checkpoints.store import step_folder
from megaslm.training.run_folder import RunFolder
from tests.messages import Says
from tests.model_folders import edit_config, make_model
from tests.toy import make_dataset, make_tokenizer, run_config


def test_of_a_project_all_that_is_missing_is_told_at_once(here: Findings, tmp_path: Path, says: Says) -> None:
    (tmp_path / "good.txt").write_text("some words")
    texts = {
        "corpus": [str(tmp_path / "web"), str(tmp_path / "web2")],
        "curated": [str(tmp_path / "good.txt"), " "],
    }
    look_at_project(here, tmp_path / "project", tmp_path / "model", texts)
    assert len(here.problems) == 3
    says("\n".join(here.problems), "--model", "web2")
    (tmp_path / "model").mkdir()
    empty = Findings(Reach.ALL, "")
    look_at_project(empty, tmp_path / "project", tmp_path / "model", {"curated": texts["curated"]})
    assert [problem.partition(": ")[0] for problem in empty.problems] == ["--model"]
    make_model(tmp_path / "model")
    make_tokenizer(tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").iterdir():
        file.rename(tmp_path / "model" / file.name)
    fitting = Findings(Reach.ALL, "")
    texts = {"curated": [str(tmp_path / "good.txt"), " "], "corpus": ["s3://bucket/web"]}
    assert look_at_project(fitting, tmp_path / "project", tmp_path / "model", texts) == [texts["curated"]]
    assert fitting.problems == []


def test_weights_and_tokenizer_of_a_project_are_looked_at(here: Findings, tmp_path: Path, says: Says) -> None:
    make_model(tmp_path / "model")
    look_at_project(here, tmp_path / "project", tmp_path / "model", {})
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    look_at_project(here, tmp_path / "project", tmp_path / "model", {})
    says("\n".join(here.problems), "tokenizer.json", "model.safetensors")


@pytest.mark.parametrize("kind", ["missing", "file", "other folder"])
def test_what_is_no_run_is_told_by_its_kind(kind: str, here: Findings, tmp_path: Path, says: Says) -> None:
    source = tmp_path / "source"
    if kind == "file":
        source.touch()
    elif kind == "other folder":
        source.mkdir()
    look_at_export(here, {"source": source, "output": tmp_path / "model"})
    says(told(here), source)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "tokens", {("train", "a"): [12], ("heldout", "a"): [4]})
    return tmp_path / "tokens"


@pytest.fixture
def here() -> Findings:
    return Findings(Reach.ALL, "")


def told(findings: Findings) -> str:
    with pytest.raises(InputError) as refused:
        findings.require_none()
    return "\n".join([*findings.lines(), str(refused.value)])


def selective(dataset: Path, **sections: dict[str, object]) -> RunConfig:
    return run_config(dataset.parent / "run", dataset, train={"objective": "slm"}, **sections)


def test_of_a_run_that_could_start_nothing_is_told(here: Findings, tokens: Path) -> None:
    make_model(tokens.parent / "model")
    model = {"from_scratch": None, "from_pretrained": str(tokens.parent / "model")}
    sets = {"sets": {"held_out": {"dataset": str(tokens)}}}
    config = run_config(tokens.parent / "run", tokens, model=model, validation=sets)
    look_at_run(here, config, ranks=2)
    here.require_none()
    assert list(here.lines()) == []


@pytest.mark.parametrize("here_is", ["project/inner", "elsewhere"])
def test_relative_paths_of_another_folder_are_told(
    here_is: str, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    """From a folder below the one that has them, and from another one than the user's file."""
    (tmp_path / "project/inner").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tokens, tmp_path / "project/data/tokens")
    monkeypatch.chdir(tmp_path / here_is)
    findings = Findings(Reach.ALL, "", origins={"data.train": f"{tmp_path}/project/inner/run.yaml:7"})
    look_at_run(findings, run_config(tmp_path / "run", Path("data/tokens")), ranks=2)
    says(told(findings), str(Path.cwd()), f"run the command in {tmp_path / 'project'}")
    missing = Findings(Reach.ALL, "", origins=findings.origins)
    look_at_run(missing, run_config(tmp_path / "run", Path("data/other")), ranks=2)
    assert told(missing).endswith(str(Path.cwd()))


def test_a_length_in_epochs_is_no_problem(tokens: Path, here: Findings) -> None:
    config = run_config(tokens.parent / "run", tokens, train={"total_tokens": None, "epochs": 2})
    look_at_run(here, config, ranks=2)
    assert here.problems == []


def test_a_remote_dataset_is_looked_at_where_its_manifest_can_be_read(tokens: Path) -> None:
    findings = Findings(Reach.ALL, "", read_remote=lambda url: read_manifest(tokens))
    config = run_config(tokens.parent / "run", tokens, data={"train": "s3://bucket/tokens", "seq_len": 32})
    look_at_run(findings, config, ranks=1)
    (problem,) = findings.problems
    assert "s3://bucket/tokens" in problem
    assert "data.seq_len = 32" in problem
    assert findings.unseen == {}


def test_a_setting_is_named_with_its_line(tokens: Path, says: Says) -> None:
    """That of `data.train` where the dataset is not scored, and no origin where there is none."""
    here = Findings(Reach.ALL, "", origins={"data.train": "run.yaml:7", "slm.reference": DEFAULT})
    look_at_run(here, selective(tokens), ranks=2)
    (problem,) = here.problems
    says(problem, f"data.train (run.yaml:7): {tokens} ", "ref_loss")
    assert here.named("slm.reference") == "slm.reference"


def test_all_that_is_missing_is_told_at_once(here: Findings, tmp_path: Path, says: Says) -> None:
    absent = tmp_path / "absent"
    config = selective(
        absent / "tokens",
        model={"from_scratch": None, "from_run": str(absent / "base")},
        slm={"reference": str(absent / "reference")},
        validation={"sets": {"held_out": {"dataset": str(absent / "held_out")}}},
    )
    look_at_run(here, config, ranks=3)
    named = ("data.train", "validation.sets.held_out", "slm.reference", "model.from_run", "3 ranks")
    says(told(here), *named)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"data": {"seq_len": 8}}, "data.seq_len = 8"),
        ({"data": {"domains": ["b"]}}, "data.domains"),
        ({"train": {"objective": "slm"}}, "megaslm score"),
        ({"validation": {"sets": {"x": {"dataset": "TOKENS", "domains": ["b"]}}}}, "validation.sets.x"),
        ({"train": {"objective": "sft"}}, "target_mask"),
    ],
)
def test_a_dataset_must_be_what_the_run_needs(
    here: Findings, tokens: Path, section: dict[str, dict[str, object]], named: str, says: Says
) -> None:
    if "validation" in section:
        section = {"validation": {"sets": {"x": {"dataset": str(tokens), "domains": ["b"]}}}}
    look_at_run(here, run_config(tokens.parent / "run", tokens, **section), ranks=None)
    says(told(here), named)


def test_a_validation_set_without_rows_is_a_problem(here: Findings, tokens: Path, says: Says) -> None:
    make_dataset(tokens.parent / "whole", {("train", "a"): [12]})
    validation = {"sets": {"x": {"dataset": str(tokens.parent / "whole")}}}
    look_at_run(here, run_config(tokens.parent / "run", tokens, validation=validation), ranks=None)
    says(told(here), "validation.sets.x", "heldout_fraction")


def test_the_dataset_of_probe_rows_must_be_there(here: Findings, tokens: Path, says: Says) -> None:
    probe = {"dataset": str(tokens.parent / "absent"), "every_tokens": 1000}
    look_at_run(here, run_config(tokens.parent / "run", tokens, probe=probe), ranks=None)
    says(told(here), "probe.dataset")


def test_a_file_that_cannot_be_read_is_a_problem(here: Findings, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    look_at_run(here, run_config(tokens.parent / "run", tokens), ranks=None)
    assert len(here.problems) == 1
    assert "Permission denied" in here.problems[0]


def test_a_control_needs_no_losses(here: Findings, tokens: Path) -> None:
    look_at_run(here, selective(tokens, slm={"criterion": "random"}), ranks=None)
    here.require_none()


def test_a_model_is_read_as_far_as_it_needs_no_torch(here: Findings, tokens: Path, says: Says) -> None:
    folder = tokens.parent / "model"
    make_model(folder)
    config = run_config(tokens.parent / "run", tokens, model={"from_scratch": None, "from_pretrained": str(folder)})
    edit_config(folder, model_type="gpt2")
    look_at_run(here, config, ranks=None)
    edit_config(folder, model_type="llama")
    (folder / "model.safetensors").unlink()
    look_at_run(here, config, ranks=None)
    says(told(here), "model.from_pretrained: ", "gpt2", "model.safetensors")


@pytest.mark.parametrize(("free_bytes", "count"), [(0, 1), (600_000, 0)])
def test_room_for_a_checkpoint_and_one_more(
    here: Findings, tokens: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, count: int
) -> None:
    """The model of the toy run has 21,152 parameters of 12 bytes each."""
    monkeypatch.setattr(Disk, "of", lambda folder: Disk(str(folder), free_bytes))
    look_at_run(here, run_config(tokens.parent / "run", tokens), ranks=None)
    assert len(here.problems) == count
    assert here.warnings == []


def test_what_only_other_hosts_may_have_is_not_looked_at(tokens: Path, says: Says) -> None:
    shared = Findings(Reach.SHARED, "not on this host")
    config = run_config(
        Path("/nowhere/run"),
        Path("/nowhere/tokens"),
        validation={"sets": {"relative": {"dataset": "nowhere/tokens"}, "url": {"dataset": "memory://bucket/web"}}},
    )
    look_at_run(shared, config, ranks=None)
    says(
        told(shared), "data.train = /nowhere/tokens", "run_dir = /nowhere/run", "nowhere/tokens", "memory://bucket/web"
    )
    assert len(shared.problems) == 1


def test_pods_see_another_file_system(tokens: Path, says: Says) -> None:
    pods = Findings(Reach.NONE, "only the pods see them")
    look_at_run(pods, selective(tokens), ranks=2)
    pods.require_none()
    (things,) = pods.unseen.values()
    says("\n".join(thing.partition(" = ")[0] for thing in things), "data.train", "run_dir")


def test_storage_that_has_no_driver_is_a_problem(here: Findings, tokens: Path, says: Says) -> None:
    config = run_config(tokens.parent / "run", Path("x"), data={"train": "nosuch://bucket/web"})
    look_at_run(here, config, ranks=None)
    says(told(here), "nosuch://")


def test_the_inputs_of_score_mask_and_export(here: Findings, tokens: Path, says: Says) -> None:
    files, free = tokens.parent / "files", str(tokens.parent / "free")
    files.mkdir()
    (files / "notes.txt").touch()
    asked = {"dataset": str(tokens), "reference": tokens / "no-model", "output": str(files)}
    look_at_scoring(here, {**asked, "name": None, "from_run": None})
    look_at_masking(here, {"dataset": str(tokens), "criterion": "reference", "output": str(files / "notes.txt")})
    look_at_export(here, {"source": tokens, "output": tokens})
    for place in (free, str(tokens), "memory://bucket/web"):
        look_at_output(here, place)
    assert len(here.problems) == 6
    says(told(here), "--reference", "megaslm score", "config.yaml", "exists already", "notes.txt is a file")


def test_the_reference_of_an_unfinished_run_is_a_warning(here: Findings, tokens: Path, says: Says) -> None:
    """A cost.json of an earlier build does not tell how far the run was."""
    reference = tokens.parent / "reference"
    make_model(reference)
    output = str(tokens.parent / "scored")
    asked = {"dataset": str(tokens), "reference": reference, "output": output, "name": "history", "from_run": None}
    for steps in ({}, {"steps": 267, "total_steps": 267}, {"steps": 110, "total_steps": 267}):
        assert here.warnings == []
        (reference / "cost.json").write_text(json.dumps({"training": {"seconds": 3.0, **steps}}))
        look_at_scoring(here, asked)
    here.require_none()
    says("\n".join(here.warnings), str(reference), "step 110 of 267")


def test_a_run_is_known_by_the_files_that_training_writes(here: Findings, tmp_path: Path, says: Says) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / CONFIG).touch()
    look_at_export(here, {"source": run.path, "output": tmp_path / "model"})
    says(told(here), "no complete checkpoint")
    newest = step_folder(run.checkpoints, 7)
    newest.mkdir(parents=True)
    (newest / COMPLETE).touch()
    assert list(run.path.glob(COMPLETE_CHECKPOINTS)) == [newest / COMPLETE]
    for source in (run.path, newest):
        found = Findings(Reach.ALL, "")
        look_at_export(found, {"source": source, "output": tmp_path / "model"})
        found.require_none()


def test_the_texts_and_the_tokenizer_of_a_recipe(here: Findings, tmp_path: Path, says: Says) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    source = {"domain": "a", "reader": "jsonl", "licence": "none"}
    paths = [f"{tmp_path}/*.jsonl", f"{tmp_path}/absent/*.jsonl"]
    recipe = {
        "name": "web",
        "seq_len": 16,
        "tokenizer": {"sentencepiece": str(tmp_path / "absent.model")},
        "sources": [{**source, "paths": [path]} for path in paths],
    }
    look_at_text(here, Loaded(Recipe.model_validate(recipe), {}))
    assert len(here.problems) == 2
    says(told(here), "sources.1.paths: ", "absent.model")


@pytest.mark.parametrize(
    "named",
    [
        "text_field: body",
        'template: "{text}\\n{answer}"',
        "text_field: meta.body",
        "messages_field: chat",
        "group_field: book",
        "domain_field: kind",
    ],
)
def test_a_field_that_the_first_record_lacks_is_named_with_the_line_of_the_recipe(
    here: Findings, tmp_path: Path, says: Says, named: str
) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a", "meta": {"url": "u"}}\n', encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "meta": [{"url": "u"}]}), tmp_path / "a.parquet")
    for reader in ("jsonl", "parquet"):
        domain = "domains: {k: web}" if named.startswith("domain_field") else "domain: web"
        lines = [
            "name: web", "licence: none", "seq_len: 16", f"tokenizer: {{huggingface: {tmp_path}}}", "sources:",
            f"- reader: {reader}", f"  paths: [{tmp_path}/a.{reader}]", f"  {domain}", f"  {named}",
        ]  # fmt: skip
        (tmp_path / "recipe.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        recipe = load(Recipe, tmp_path / "recipe.yaml")
        found = Findings(Reach.ALL, "")
        look_at_fields(found, recipe)
        says(told(found), f"sources.0.{named.partition(':')[0]} = ", f"({tmp_path}/recipe.yaml:9)", f"a.{reader}")
        (task,) = plan_tasks(recipe.value)
        with pytest.raises(DataError, match=rf"sources\.0\.{named.partition(':')[0]} = "):
            list(TaskReader(task).documents())


def test_files_that_are_not_there_are_left_to_the_verb(here: Findings, tmp_path: Path) -> None:
    """A finished dataset needs them no more."""
    source = {"domain": "a", "reader": "jsonl", "paths": [f"{tmp_path}/absent.jsonl"]}
    tokenizer = {"huggingface": str(tmp_path)}
    recipe = {"name": "web", "licence": "none", "seq_len": 16, "tokenizer": tokenizer, "sources": [source]}
    look_at_fields(here, Loaded(Recipe.model_validate(recipe), {}))
    here.require_none()
