"""The order of runs, and the stages that they need."""

from pathlib import Path

import pytest
import yaml

from benchmarks.selection_suite.plan import PairPlan, Run, Stage, in_order, with_needs
from benchmarks.selection_suite.settings import Seeds, read_arms, read_models, read_suite
from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from tests.messages import Says

SUITE = read_suite(quick=False)
ARMS = read_arms()


def plan(folder: Path) -> PairPlan:
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "target.jsonl").touch()
    return PairPlan(folder, SUITE, read_models(), ARMS)


def needed(stage: Stage) -> dict[str, Stage]:
    return {each.name.partition("/")[2]: each for each in with_needs([stage])}


def test_the_first_seed_of_the_headline_comes_first_and_the_other_arms_last() -> None:
    arms = {"clm": ARMS["clm"], "slm-0.6": ARMS["slm-0.6"], "slm-0.7": ARMS["slm-0.7"]}
    suite = SUITE.model_copy(update={"seeds": Seeds(headline=2, other=1)})
    assert [run.name for run in in_order(arms, ["a", "b"], suite)] == [
        *("a/clm/seed-1", "a/slm-0.6/seed-1", "b/clm/seed-1", "b/slm-0.6/seed-1"),
        *("a/clm/seed-2", "a/slm-0.6/seed-2", "b/clm/seed-2", "b/slm-0.6/seed-2"),
        *("a/slm-0.7/seed-1", "b/slm-0.7/seed-1"),
    ]


def test_other_sizes_come_last_with_their_own_arms_and_shapes(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("clm", "slm-0.6", "slm-0.2")}
    assert SUITE.scaling is not None
    scaling = SUITE.scaling.model_copy(update={"seeds": 1})
    suite = SUITE.model_copy(update={"seeds": Seeds(headline=1, other=1), "scaling": scaling})
    sized = suite.sized_pairs(["problems", "documentation"])
    assert sized == ["problems@small", "problems@large"]
    order = [run.name for run in in_order(arms, ["problems", *sized], suite)]
    assert order[3:] == [f"problems@{size}/{arm}/seed-1" for size in ("small", "large") for arm in ("clm", "slm-0.2")]
    large = PairPlan(tmp_path / "problems@large", suite.for_pair("problems@large"), read_models(), ARMS)
    reference = needed(large.stage_of(Run("problems@large", "slm-0.2", 1)))["models/base/seed-0"]
    shape = yaml.safe_load(reference.content)["model"]["from_scratch"]
    assert (shape["hidden_size"], shape["vocab_size"]) == (256, SUITE.vocab_size)
    assert suite.for_pair("problems") is suite


def test_shared_stages_come_once_and_before_what_needs_them(tmp_path: Path) -> None:
    made = plan(tmp_path / "pair")
    stages = with_needs(made.stage_of(Run("pair", arm, seed)) for arm in ("slm-0.6", "clm") for seed in (1, 2))
    names = [stage.name for stage in stages]
    assert len(names) == len(set(names))
    assert sum(stage.verb == "score" for stage in stages) == 2
    assert {name for name in names if "/base/" in name} == {f"pair/models/base/seed-{seed}" for seed in (0, 1, 2)}
    for stage in stages:
        assert all(names.index(need.name) < names.index(stage.name) for need in stage.needs)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_configuration_of_a_run(tmp_path: Path, arm: str) -> None:
    stage = plan(tmp_path / "pair").stage_of(Run("pair", arm, 3))
    for each in needed(stage).values():
        if each.verb == "train":
            file = tmp_path / "run.yaml"
            file.write_text(each.content)
            config = load(RunConfig, file).value
            assert config.train.total_tokens == each.tokens
            assert Path(config.run_dir) == each.output
    content = yaml.safe_load(stage.content)
    assert (content["seed"], content["data"]["shuffle_seed"]) == (3, 3)
    assert content["model"]["from_run"].endswith("models/base/seed-3")
    assert content["train"]["total_tokens"] == SUITE.run["train"]["total_tokens"]


def test_an_arm_reads_what_its_file_says(tmp_path: Path) -> None:
    made = plan(tmp_path / "pair")
    small = yaml.safe_load(made.stage_of(Run("pair", "small-reference-0.6", 1)).content)
    assert small["data"]["train"].endswith("scored/small-reference/corpus")
    assert small["probe"]["dataset"].endswith("scored/small-reference/probe")
    run = Run("pair", "distill-0.6", 1)
    assert yaml.safe_load(made.stage_of(run).content)["data"]["train"].endswith("scored/reference-top-16/corpus")
    scoring = needed(made.stage_of(run))["scored/reference-top-16/corpus"]
    assert scoring.arguments[-2:] == ("--top-logits", "16")
    assert "--top-logits" not in needed(made.stage_of(run))["scored/reference/probe"].arguments
    # The history of a run is the model that it started from itself.
    history = made.stage_of(Run("pair", "sstoken-0.6", 2))
    assert yaml.safe_load(history.content)["data"]["train"].endswith("scored/base-seed-2/corpus")
    assert {name for name in needed(history) if name.startswith("models/")} == {"models/base/seed-2"}
    both = yaml.safe_load(made.stage_of(Run("pair", "clm-with-curated", 1)).content)
    assert set(both["data"]["streams"]) == {"corpus", "curated"}
    reference = needed(made.stage_of(Run("pair", "slm-0.6", 1)))["models/reference/seed-0"]
    assert yaml.safe_load(reference.content)["data"]["train"].endswith("tokens/curated")
    assert reference.tokens == read_models()["reference"].length * SUITE.run["train"]["total_tokens"]


def test_a_change_of_what_a_stage_needs_changes_its_fingerprint(tmp_path: Path) -> None:
    run = Run("pair", "slm-0.6", 1)
    before = plan(tmp_path / "pair").stage_of(run)
    models = read_models()
    models["reference"] = models["reference"].model_copy(update={"length": 1.0})
    after = PairPlan(tmp_path / "pair", SUITE, models, ARMS).stage_of(run)
    assert before.content == after.content
    assert before.sha256 != after.sha256


def test_an_arm_that_names_no_model_is_refused(tmp_path: Path, says: Says) -> None:
    (tmp_path / "mine.yaml").write_text("scored_by: oracle\n")
    with pytest.raises(ConfigError) as raised:
        read_arms(tmp_path)
    says(raised.value, str(tmp_path / "mine.yaml"), "scored_by = oracle", "reference")
