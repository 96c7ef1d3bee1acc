"""Files, bases and overrides become one configuration, or one message that says all that is wrong."""

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError


class Corpus(BaseModel, frozen=True, extra="forbid"):
    """An entry of a list, for the overrides by index."""

    name: str
    keep_fraction: float = 1.0


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A model that is no run."""

    sources: tuple[Corpus, ...]


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, path, overrides)
    return str(caught.value)


def child_of(run_file: Path, text: str) -> Path:
    child = run_file.with_name("child.yaml")
    child.write_text(f"base: {run_file.name}\n{text}", encoding="utf-8")
    return child


def test_numbers_are_what_they_look_like(run_file: Path) -> None:
    config = load(RunConfig, run_file, ["train.eps=1e-9", "train.micro_batch_rows=1_0", "slm.keep_ratio=0.7"]).value
    assert config.train.lr == 2e-5
    assert config.train.total_tokens == 100_000
    assert (config.train.eps, config.train.micro_batch_rows) == (1e-9, 10)
    assert config.slm.keep_ratio == Decimal("0.7")


@pytest.mark.parametrize("text", ["no", "0123x", "12:30", "2024-01-01", "<<"])
def test_text_stays_text(run_file: Path, text: str) -> None:
    assert load(RunConfig, run_file, [f"run_dir={text}"]).value.run_dir == text


def test_a_file_lies_over_its_base_key_by_key(run_file: Path) -> None:
    config = load(RunConfig, child_of(run_file, "train: {lr: 1, micro_batch_rows: 8}\nseed: 7")).value
    assert (config.train.lr, config.train.micro_batch_rows, config.seed) == (1.0, 8, 7)
    assert config.train.objective == "slm"


def test_bases_chain_and_are_relative_to_the_file_that_names_them(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    middle, top = tmp_path / "deep" / "middle.yaml", tmp_path / "top.yaml"
    middle.write_text("base: ../run.yaml\nseed: 1\ntrain: {lr: 3e-5}", encoding="utf-8")
    top.write_text("base: deep/middle.yaml\nseed: 2", encoding="utf-8")
    config = load(RunConfig, top).value
    assert (config.seed, config.train.lr) == (2, 3e-5)


def test_null_takes_back_what_the_base_chose(run_file: Path) -> None:
    child = child_of(run_file, "model: {from_pretrained: models/x, from_scratch: null}")
    model = load(RunConfig, child).value.model
    assert (model.from_pretrained, model.from_scratch) == ("models/x", None)


def test_both_of_a_choice_are_refused(run_file: Path) -> None:
    message = complaint(child_of(run_file, "model: {from_pretrained: models/x}"))
    assert "model: exactly one of from_pretrained, from_run, from_scratch must be set; found" in message


def test_a_file_that_only_names_its_base_is_its_base(run_file: Path) -> None:
    child = run_file.parent / "child.yaml"
    child.write_text(f"base: {run_file.name}\n", encoding="utf-8")
    assert load(RunConfig, child).value == load(RunConfig, run_file).value


def test_an_empty_mapping_empties_the_base(run_file: Path) -> None:
    child = child_of(run_file, "deepspeed_extra: {}")
    run_file.write_text(run_file.read_text() + "deepspeed_extra: {comms_logger: {enabled: true}}\n", encoding="utf-8")
    assert load(RunConfig, run_file).value.deepspeed_extra
    assert load(RunConfig, child).value.deepspeed_extra == {}


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sources:\n- {name: a}\n- {name: b}\n", encoding="utf-8")
    loaded = load(Recipe, path, ["sources.1.keep_fraction=0.2"])
    assert [corpus.keep_fraction for corpus in loaded.value.sources] == [1.0, 0.2]
    assert loaded.provenance["sources.1.keep_fraction"] == "--set"
    assert loaded.provenance["sources.1.name"] == f"{path}:3"
    assert loaded.provenance["sources.0.keep_fraction"] == "default"
    with pytest.raises(ConfigError, match=r"sources\.2: sources is a list; an index from 0 to 1 must follow"):
        load(Recipe, path, ["sources.2.keep_fraction=0.2"])


def test_overrides_make_the_sections_on_their_way(run_file: Path) -> None:
    config = load(RunConfig, run_file, ["validation.sets.web.dataset=runs/web", "validation.sets.web.max_rows=4"]).value
    assert config.validation.sets["web"].max_rows == 4


def test_provenance_names_file_and_line_override_or_default(run_file: Path) -> None:
    child = child_of(run_file, "train:\n  lr: 1e-3\ndata: {domains: [a, b]}\n")
    provenance = load(RunConfig, child, ["data.domains.1=c", "slm.scope=sequence"]).provenance
    assert provenance["train.lr"] == f"{child}:3"
    assert provenance["train.objective"] == f"{run_file}:6"
    assert provenance["data.domains"] == "--set"
    assert provenance["slm.scope"] == "--set"
    assert provenance["slm.keep_ratio"] == "default"
    assert provenance["model.from_scratch.hidden_size"] == f"{run_file}:3"


BAD_SETTINGS = [
    ("slm.keep_ratio=1.4", "slm.keep_ratio = 1.4: must be a number in (0, 1] (--set)"),
    (
        "slm.keep_ratio=0.1234567891",
        "slm.keep_ratio = 0.1234567891: must be a number in (0, 1] with at most 9 decimal places (--set)",
    ),
    (
        "slm={mode: running, scope: sequence}",
        "slm: mode running needs scope batch and score excess or loss; found scope sequence and score excess, whose "
        "choice is exact in one pass: use mode exact (--set)",
    ),
    ("train.lr=fast", "train.lr = fast: must be a number above 0 (--set)"),
    ("train.lr=true", "train.lr = true: must be a number above 0 (--set)"),
    ("train.lr=.inf", "train.lr = .inf: must be a number above 0 (--set)"),
    ("train.beta1=1", "train.beta1 = 1: must be a number in [0, 1) (--set)"),
    ("train.micro_batch_rows=1.5", "train.micro_batch_rows = 1.5: must be a whole number above 0 (--set)"),
    ("train.objective=slim", "train.objective = slim: must be one of clm, slm (--set)"),
    ("validation.every_tokens=0", "validation.every_tokens = 0: must be a whole number above 0 or null (--set)"),
    ("data.domains=web", "data.domains = web: must be a list or null (--set)"),
    ("model.gradient_checkpointing=7", "model.gradient_checkpointing = 7: must be true or false (--set)"),
    ("run_dir=7", "run_dir = 7: must be text (--set)"),
    ("slm=null", "slm = null: must be a section of settings (--set)"),
    ("train.lrr=1", "train.lrr = 1: unknown key; did you mean train.lr? (--set)"),
    ("lr=1", "lr = 1: unknown key; did you mean train.lr? (--set)"),
    ("train.keep_ratoi=1", "train.keep_ratoi = 1: unknown key; did you mean slm.keep_ratio? (--set)"),
    ("log.zzz=1", "log.zzz = 1: unknown key; known here are every_steps (--set)"),
    ("validation.sets.web.split=train", "validation.sets.web.dataset: not set; must be text"),
    ("train.lr", "--set train.lr: must look like --set train.lr=2e-5"),
    ("train..lr=1", "--set train..lr=1: must look like --set train.lr=2e-5"),
    ("run_dir=[a", "--set run_dir=[a: not valid YAML at line 1, column 3"),
    ("train.warmup_tokens=200000", "train: warmup_tokens = 200000 must be below total_tokens = 100000"),
    ("data.seq_len=100", "train.global_batch_tokens = 1024 is not a multiple of data.seq_len = 100"),
]


@pytest.mark.parametrize(("override", "expected"), BAD_SETTINGS, ids=[override for override, _ in BAD_SETTINGS])
def test_a_bad_setting_says_what_is_allowed(run_file: Path, override: str, expected: str) -> None:
    message = complaint(run_file, override)
    assert expected in message
    assert message.splitlines()[0] == f"{run_file}: 1 problem"


def test_all_problems_are_reported_at_once_with_their_files(run_file: Path) -> None:
    child = child_of(run_file, "train: {lr: -1}\nzero: {stge: 2}\n")
    run_file.write_text(run_file.read_text().replace("seq_len: 128", "seq_len: long"), encoding="utf-8")
    first, *rest = complaint(child, "slm.keep_ratio=2", "oops").splitlines()
    assert first == f"{child}: 5 problems"
    assert sorted(rest) == sorted(
        [
            "  --set oops: must look like --set train.lr=2e-5",
            f"  train.lr = -1: must be a number above 0 ({child}:2)",
            f"  zero.stge = 2: unknown key; did you mean zero.stage? ({child}:3)",
            f"  data.seq_len = long: must be a whole number above 0 ({run_file}:4)",
            "  slm.keep_ratio = 2: must be a number in (0, 1] (--set)",
        ]
    )


BAD_FILES = [
    ("", "the file is empty"),
    ("# a comment\n", "the file is empty"),
    ("- a\n- b\n", "must hold a mapping of settings; found a list"),
    ("train\n", "must hold a mapping of settings; found text"),
    ("seed: 1\ntrain: {lr: 1\n  lr: 2}\n", "not valid YAML at line 3, column 5"),
    ("seed: 1\n\ttrain: 2\n", "not valid YAML at line 2, column 1"),
    ("seed: 1\ndata:\n  seq_len: 1\n  seq_len: 2\nseed: 2\n", "run.yaml:4: data.seq_len is set twice; first at"),
    ("seed: 1\ndata:\n  seq_len: 1\n  seq_len: 2\nseed: 2\n", "run.yaml:5: seed is set twice; first at"),
    ("? [a, b]\n: 1\n", "run.yaml:1: a key must be text"),
    ("seed: &a [*a]\n", "run.yaml:1: an alias refers to what contains it"),
    ("seed: !!python/object:os.system 1\n", "cannot be read as"),
    ("seed: 1\n---\nseed: 2\n", "not valid YAML at line 2"),
    ("base: [a.yaml]\n", "must be the name of one file"),
    ("base: absent.yaml\n", "absent.yaml: no such file"),
    ("base: absent.yaml\n", "(named as base: by "),
]


@pytest.mark.parametrize(("text", "expected"), BAD_FILES)
def test_a_bad_file_is_one_clear_message(run_file: Path, text: str, expected: str) -> None:
    run_file.write_text(text, encoding="utf-8")
    assert expected in complaint(run_file)


def test_a_syntax_error_shows_its_line(run_file: Path) -> None:
    run_file.write_text("seed: 1\nrun_dir: @here\n", encoding="utf-8")
    assert complaint(run_file).splitlines()[1:] == ["    run_dir: @here", "             ^"]


def test_a_missing_file_names_its_neighbours(run_file: Path) -> None:
    message = complaint(run_file.with_name("rum.yaml"))
    assert message == f"{run_file.with_name('rum.yaml')}: no such file; {run_file.parent} has run.yaml"


def test_a_folder_is_no_file(run_file: Path) -> None:
    assert "this is a folder; name one YAML file" in complaint(run_file.parent)


def test_bytes_that_are_no_text_are_refused(run_file: Path) -> None:
    run_file.write_bytes(b"run_dir: \xff\n")
    assert "not UTF-8 text (byte 9)" in complaint(run_file)


def test_a_path_that_cannot_be_read_is_refused(run_file: Path) -> None:
    assert "cannot be read: Not a directory" in complaint(run_file / "below.yaml")


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("base: b.yaml\n", encoding="utf-8")
    b.write_text("base: a.yaml\n", encoding="utf-8")
    assert f"based on one another in a circle: {a} -> {b} -> {a}" in complaint(a)
