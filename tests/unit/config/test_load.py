"""Files, bases and overrides become one configuration, or one message that says all that is wrong."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel

from megaslm.config import recipe as config_recipe
from megaslm.config.cluster import SlurmCluster
from megaslm.config.load import load
from megaslm.config.problems import SchemaNode, expected
from megaslm.config.schema import RunConfig
from megaslm.config.source import KeyPath, dotted_key
from megaslm.errors import ConfigError
from tests.messages import Says


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


def test_old_names_of_settings_are_read_with_a_warning(run_file: Path, says: Says) -> None:
    loaded = load(RunConfig, child_of(run_file, "slm: {score: loss}"), ["guard.rehearse=true"])
    assert (loaded.value.slm.criterion, loaded.value.guard.dry_run) == ("loss", True)
    assert loaded.provenance["slm.criterion"] == f"{run_file.with_name('child.yaml')}:2"
    says("\n".join(loaded.warnings), "slm.score", "slm.criterion", "guard.rehearse", "guard.dry_run", "--set")


@pytest.mark.parametrize(("old", "new"), [("false", "none"), ("true", "full")])
def test_gradient_checkpointing_is_read_as_recompute(run_file: Path, old: str, new: str, says: Says) -> None:
    loaded = load(RunConfig, child_of(run_file, f"model: {{gradient_checkpointing: {old}}}"))
    assert loaded.value.model.recompute == new
    says("\n".join(loaded.warnings), "model.gradient_checkpointing", f"model.recompute = {new}")


def test_another_value_of_an_old_name_is_refused_by_the_new_one(run_file: Path, says: Says) -> None:
    says(complaint(child_of(run_file, "model: {gradient_checkpointing: [1]}")), "model.recompute", "selective")


@pytest.mark.parametrize(("below", "above"), [("score", "criterion"), ("criterion", "score")])
def test_of_an_old_and_a_new_name_the_one_laid_last_counts(run_file: Path, below: str, above: str) -> None:
    child = child_of(run_file, f"slm: {{{below}: loss}}")
    assert load(RunConfig, child, [f"slm.{above}=random"]).value.slm.criterion == "random"


def test_a_configuration_without_old_names_warns_of_nothing(run_file: Path) -> None:
    assert load(RunConfig, run_file, ["slm.criterion=loss"]).warnings == ()


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


def test_both_of_a_choice_are_refused(run_file: Path, says: Says) -> None:
    message = complaint(child_of(run_file, "model: {from_pretrained: models/x}"))
    says(message, "from_pretrained", "from_run", "from_scratch")


def test_a_file_that_only_names_its_base_is_its_base(run_file: Path) -> None:
    child = run_file.parent / "child.yaml"
    child.write_text(f"base: {run_file.name}\n", encoding="utf-8")
    assert load(RunConfig, child).value == load(RunConfig, run_file).value


def test_an_empty_mapping_empties_the_base(run_file: Path) -> None:
    child = child_of(run_file, "deepspeed_extra: {}")
    run_file.write_text(run_file.read_text() + "deepspeed_extra: {comms_logger: {enabled: true}}\n", encoding="utf-8")
    assert load(RunConfig, run_file).value.deepspeed_extra
    assert load(RunConfig, child).value.deepspeed_extra == {}


def test_overrides_reach_into_lists(tmp_path: Path, says: Says) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sources:\n- {name: a}\n- {name: b}\n", encoding="utf-8")
    loaded = load(Recipe, path, ["sources.1.keep_fraction=0.2"])
    assert [corpus.keep_fraction for corpus in loaded.value.sources] == [1.0, 0.2]
    assert loaded.provenance["sources.1.keep_fraction"] == "--set"
    assert loaded.provenance["sources.1.name"] == f"{path}:3"
    assert loaded.provenance["sources.0.keep_fraction"] == "default"
    with pytest.raises(ConfigError) as refused:
        load(Recipe, path, ["sources.2.keep_fraction=0.2"])
    says(refused, "sources.2", "0 to 1")


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
    ("slm.keep_ratio=1.4", "slm.keep_ratio = 1.4"),
    (
        "slm.keep_ratio=0.1234567891",
        "slm.keep_ratio = 0.1234567891",
    ),
    (
        "slm={mode: running, scope: sequence}",
        "slm: ",
    ),
    *(
        (f"slm={{{settings}}}", "slm: ")
        for settings in (
            "policy: threshold",
            "threshold: 1.5",
            "policy: threshold, threshold: 1.5, scope: sequence",
            "policy: threshold, threshold: 1.5, keep_ratio_warmup_tokens: 1024",
            "policy: band, keep_ratio: 0.8, skip_ratio: 0.3",
            "policy: band, mode: running",
            "policy: dataset, criterion: excess",
            "policy: dataset, criterion: reference, granularity: span",
            "policy: threshold, threshold: 1.5, keep_ratio_of_domains: {web: 0.5}",
            "keep_ratio_of_domains: {web: 0.5}, scope: sequence",
            "policy: stochastic, granularity: span",
            "policy: stochastic, criterion: random",
            "criterion: student_entropy, mode: running",
            "keep_ratio_warmup_tokens: 1024, keep_ratio_schedule: [{tokens: 0, keep_ratio: 0.6}]",
            "keep_ratio: 0.5, keep_ratio_schedule: [{tokens: 0, keep_ratio: 0.6}]",
            "keep_ratio: 0.5, keep_ratio_schedule: [{tokens: 9, keep_ratio: 0.6}, {tokens: 8, keep_ratio: 0.5}]",
            "policy: threshold, threshold: 1.5, keep_ratio_schedule: [{tokens: 0, keep_ratio: 0.6}]",
        )
    ),
    ("slm.keep_ratio_schedule.0.keep_ratio=0", "slm.keep_ratio_schedule"),
    ("slm.temperature=0", "slm.temperature = 0"),
    ("slm.skip_ratio=1", "slm.skip_ratio = 1"),
    ("train.lr=fast", "train.lr = fast"),
    ("train.lr=true", "train.lr = true"),
    ("train.lr=.inf", "train.lr = .inf"),
    ("train.beta1=1", "train.beta1 = 1"),
    ("train.micro_batch_rows=1.5", "train.micro_batch_rows = 1.5"),
    ("train.objective=slim", "train.objective = slim"),
    ("validation.every_tokens=0", "validation.every_tokens = 0"),
    ("data.domains=web", "data.domains = web"),
    ("model.document_isolation=7", "model.document_isolation = 7"),
    ("model.recompute=all", "model.recompute = all"),
    ("model.compile=true", "model.compile = true"),
    ("run_dir=7", "run_dir = 7"),
    ("slm=null", "slm = null"),
    ("train.lrr=1", "train.lrr = 1"),
    ("lr=1", "lr = 1"),
    ("train.keep_ratoi=1", "train.keep_ratoi = 1"),
    ("log.zzz=1", "log.zzz = 1"),
    ("validation.sets.web.split=train", "validation.sets.web.dataset"),
    ("train.lr", "--set train.lr"),
    ("train..lr=1", "--set train..lr=1"),
    ("run_dir=[a", "--set run_dir=[a"),
    ("train.warmup_tokens=200000", "warmup_tokens = 200000"),
    ("data.seq_len=100", "train.global_batch_tokens = 1024"),
]


def settings_in(node: SchemaNode, path: KeyPath = ()) -> Iterator[tuple[KeyPath, SchemaNode]]:
    """Each single setting below a place of a schema; of a list the first entry, of a mapping any."""
    for name, child in node.children().items():
        inner = [*settings_in(child, (*path, name))]
        for key in (0, "NAME"):
            entry, below = child.follow([key])
            if entry:
                inner += settings_in(below, (*path, name, key))
        yield from inner or [((*path, name), child)]


@pytest.mark.parametrize("model", [RunConfig, config_recipe.Recipe, SlurmCluster], ids=["run", "recipe", "slurm"])
def test_what_every_setting_allows(model: type[BaseModel], says: Says) -> None:
    says("\n".join(f"{dotted_key(path)}: {expected(node)}" for path, node in settings_in(SchemaNode(model))))


@pytest.mark.parametrize(("override", "named"), BAD_SETTINGS, ids=[override for override, _ in BAD_SETTINGS])
def test_a_bad_setting_says_what_is_allowed(run_file: Path, override: str, named: str, says: Says) -> None:
    says(complaint(run_file, override), run_file, named)


def test_all_problems_are_reported_at_once_with_their_files(run_file: Path, says: Says) -> None:
    child = child_of(run_file, "train: {lr: -1}\nzero: {stge: 2}\n")
    run_file.write_text(run_file.read_text().replace("seq_len: 128", "seq_len: long"), encoding="utf-8")
    first, *rest = complaint(child, "slm.keep_ratio=2", "oops").splitlines()
    told = "\n".join([first, *sorted(rest)])
    says(told, child, "--set oops", f"({child}:2)", f"({child}:3)", f"({run_file}:4)", "slm.keep_ratio = 2")
    assert len(rest) == 5


BAD_FILES = [
    ("", "run.yaml"),
    ("# a comment\n", "run.yaml"),
    ("- a\n- b\n", "run.yaml"),
    ("train\n", "run.yaml"),
    ("seed: 1\ntrain: {lr: 1\n  lr: 2}\n", "line 3, column 5"),
    ("seed: 1\n\ttrain: 2\n", "line 2, column 1"),
    ("seed: 1\ndata:\n  seq_len: 1\n  seq_len: 2\nseed: 2\n", "run.yaml:4: data.seq_len"),
    ("seed: 1\ndata:\n  seq_len: 1\n  seq_len: 2\nseed: 2\n", "run.yaml:5: seed"),
    ("? [a, b]\n: 1\n", "run.yaml:1"),
    ("seed: &a [*a]\n", "run.yaml:1"),
    ("seed: !!python/object:os.system 1\n", "os.system"),
    ("seed: 1\n---\nseed: 2\n", "line 2"),
    ("base: [a.yaml]\n", "base"),
    ("base: absent.yaml\n", "absent.yaml"),
]


@pytest.mark.parametrize(("text", "named"), BAD_FILES)
def test_a_bad_file_is_one_clear_message(run_file: Path, text: str, named: str, says: Says) -> None:
    run_file.write_text(text, encoding="utf-8")
    says(complaint(run_file), named)


def test_a_file_of_another_kind_is_told_in_one_line(run_file: Path, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        load(config_recipe.Recipe, run_file)
    says(refused, run_file, "megaslm train", "megaslm prepare")
    recipe, cluster = (run_file.with_name(name) for name in ("recipe.yaml", "cluster.yaml"))
    recipe.write_text("name: web\nsources: []\n")
    cluster.write_text("kind: local\n")
    for file in (recipe, cluster):
        says(complaint(file), file, "megaslm train")
    says(complaint(run_file, "sources=[]"), "sources", "unknown key")


def test_a_syntax_error_shows_its_line(run_file: Path) -> None:
    run_file.write_text("seed: 1\nrun_dir: @here\n", encoding="utf-8")
    assert complaint(run_file).splitlines()[1:] == ["    run_dir: @here", "             ^"]


def test_a_missing_file_names_its_neighbours(run_file: Path, says: Says) -> None:
    message = complaint(run_file.with_name("rum.yaml"))
    says(message, run_file.with_name("rum.yaml"), run_file.parent, "run.yaml")


def test_a_folder_is_no_file(run_file: Path, says: Says) -> None:
    says(complaint(run_file.parent), run_file.parent)


def test_bytes_that_are_no_text_are_refused(run_file: Path, says: Says) -> None:
    run_file.write_bytes(b"run_dir: \xff\n")
    says(complaint(run_file), run_file, "(byte 9)")


def test_a_path_that_cannot_be_read_is_refused(run_file: Path, says: Says) -> None:
    says(complaint(run_file / "below.yaml"), run_file / "below.yaml")


def test_a_circle_of_bases_is_refused(tmp_path: Path, says: Says) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("base: b.yaml\n", encoding="utf-8")
    b.write_text("base: a.yaml\n", encoding="utf-8")
    says(complaint(a), f"{a} -> {b} -> {a}")
