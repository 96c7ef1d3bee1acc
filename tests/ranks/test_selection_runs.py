"""Whole runs that select otherwise than by exact excess loss, and runs that meet what cannot be sorted."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megaslm.config.schema import RunConfig
from megaslm.slm.threshold import EXACT_STEPS
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.toy import SEQ_LEN, place_of, write_config


def changed(config: RunConfig, run: Path, **sections: dict[str, object]) -> RunConfig:
    settings = config.model_dump()
    for name, changes in sections.items():
        settings[name] |= changes
    return RunConfig.model_validate({**settings, "run_dir": str(run)})


def steps_of(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "tokens_per_second"}
        for line in lines
        if line["kind"] == "step"
    ]


def test_a_running_threshold_resumes_from_its_checkpoint(chain: Chain, tmp_path: Path) -> None:
    run = tmp_path / "running"
    config = changed(chain.slm_config(run), run, slm={"mode": "running"})
    path = write_config(tmp_path / "running.yaml", config)
    run_megaslm("train", path)
    undisturbed = steps_of(run)
    progress = json.loads((run / "checkpoints" / "step-00000004" / "progress.json").read_text())
    assert len(progress["selection"]["thresholds"]) == 4
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    run_megaslm("train", path, "--resume")
    assert steps_of(run) == undisturbed
    ratios = [float(str(step["selected_ratio"])) for step in undisturbed]
    assert all(abs(ratio - 0.6) < 0.005 for ratio in ratios[:EXACT_STEPS])
    # The losses of this toy fall so fast that the threshold lags far behind them.
    assert len(set(ratios[EXACT_STEPS:])) > 2
    assert 0.2 < min(ratios) <= max(ratios) < 0.95


OTHERWISE: dict[str, dict[str, object]] = {
    "drawn within domains by entropy": {
        "policy": "stochastic",
        "criterion": "student_entropy",
        "keep_ratio": "0.4",
        "keep_ratio_of_domains": {"b": "0.8"},
    },
    "by an expression with entropy": {"criterion": "max(loss - ref_loss, 0.5 * entropy)", "keep_ratio": "0.6"},
    "by an expression under a running threshold": {"criterion": "loss - 0.5 * ref_loss", "mode": "running"},
    "from a threshold on": {"policy": "threshold", "threshold": -0.125, "keep_ratio": "1"},
    "a band on a schedule": {
        "policy": "band",
        "skip_ratio": "0.2",
        "keep_ratio": "0.5",
        "keep_ratio_schedule": [{"tokens": 0, "keep_ratio": "0.8"}, {"tokens": 6 * 8 * SEQ_LEN, "keep_ratio": "0.5"}],
    },
}


@pytest.mark.parametrize("slm", OTHERWISE.values(), ids=OTHERWISE)
def test_a_run_that_selects_otherwise_resumes_as_it_was(chain: Chain, tmp_path: Path, slm: dict[str, object]) -> None:
    run = tmp_path / "run"
    config = changed(chain.slm_config(run), run, slm=slm, train={"micro_batch_rows": 1})
    path = write_config(tmp_path / "run.yaml", config)
    run_megaslm("train", path, world_size=2)
    undisturbed = steps_of(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    run_megaslm("train", path, "--resume", world_size=2)
    assert steps_of(run) == undisturbed
    ratios = [float(str(step["selected_ratio"])) for step in undisturbed]
    thresholds = [step["threshold"] for step in undisturbed]
    if "criterion" in slm and "policy" not in slm:
        # A forecast may be the threshold of an earlier step.
        assert len(set(thresholds)) > EXACT_STEPS
        assert ratios[:EXACT_STEPS] == pytest.approx([0.6] * EXACT_STEPS, abs=0.01)
    elif slm["policy"] == "stochastic":
        for step in undisturbed:
            of_domains = step["domain_ratio"]
            assert isinstance(of_domains, dict)
            # K is a whole number of some hundred targets.
            assert of_domains == pytest.approx({"a": 0.4, "b": 0.8}, abs=0.01)
        assert thresholds == [None] * 8
    elif slm["policy"] == "threshold":
        assert thresholds == [-0.125] * 8
        assert len(set(ratios)) > 2
    else:
        assert ratios == pytest.approx([0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.5], abs=0.01)


@pytest.mark.parametrize(
    ("criterion", "expression", "slm"),
    [
        ("excess", "loss - ref_loss", {}),
        ("excess", "loss - ref_loss", {"mode": "running"}),
        ("excess", "loss - ref_loss", {"weight": {"by": "sigmoid", "temperature": 0.5}}),
        ("loss", "1 * loss", {"scope": "sequence"}),
        ("reference", "-ref_loss", {"policy": "band"}),
        ("student_entropy", "entropy + 0", {"granularity": "document"}),
    ],
)
def test_an_expression_trains_as_the_criterion_that_it_spells(
    chain: Chain, tmp_path: Path, criterion: str, expression: str, slm: dict[str, object]
) -> None:
    found = {}
    for number, text in enumerate((criterion, expression)):
        run = tmp_path / str(number)
        config = changed(chain.slm_config(run), run, slm={**slm, "criterion": text}, train={"micro_batch_rows": 2})
        run_megaslm("train", write_config(tmp_path / f"{number}.yaml", config), world_size=2)
        found[text] = steps_of(run)
    assert len(found[criterion]) == 8
    assert found[expression] == found[criterion]


@pytest.mark.parametrize("criterion", ["loss - history", "weight - loss", "loss - ref_entropy"])
def test_a_column_that_is_absent_is_refused(chain: Chain, tmp_path: Path, says: Says, criterion: str) -> None:
    run = tmp_path / "run"
    file = write_config(tmp_path / "run.yaml", changed(chain.slm_config(run), run, slm={"criterion": criterion}))
    for command in (("train", file), ("train", file, "--check")):
        said = run_megaslm(*command, expect_status=2)
        says(line_with(said, "has no column"), criterion, chain.scored, "ref_loss", PLACE=place_of(file, "train: "))
    assert not run.exists()


def test_a_domain_that_is_not_read_has_no_share(chain: Chain, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "run"
    config = changed(chain.slm_config(run), run, slm={"keep_ratio_of_domains": {"c": "0.8"}})
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    says(line_with(said, "slm.keep_ratio_of_domains"), " c;", " a, b")
    assert not run.exists()


def test_a_run_by_documents_selects_others(chain: Chain, tmp_path: Path) -> None:
    found = {}
    for granularity in ("token", "document"):
        run = tmp_path / granularity
        config = changed(chain.slm_config(run), run, slm={"granularity": granularity})
        run_megaslm("train", write_config(tmp_path / f"{granularity}.yaml", config))
        found[granularity] = steps_of(run)
    tokens, documents = (steps[0] for steps in found.values())
    for name in ("all_loss", "selected_ratio"):
        assert tokens[name] == documents[name]
    assert tokens["loss"] != documents["loss"]
    said = run_megaslm("train", tmp_path / "document.yaml", "--set", "slm.criterion=random", expect_status=2)
    assert "granularity" in said


def test_a_run_by_entropy_needs_entropies_and_reports_what_it_measured(
    chain: Chain, tmp_path: Path, says: Says
) -> None:
    run = tmp_path / "entropy"
    slm: dict[str, object] = {"criterion": "reference_and_entropy", "measure_unselected": False}
    config = changed(chain.slm_config(run), run, slm=slm)
    file = write_config(tmp_path / "entropy.yaml", config)
    said = run_megaslm("train", file, expect_status=2)
    says(line_with(said, "ref_entropy"), chain.scored, PLACE=place_of(file, "train: "))
    assert not run.exists()

    scored = tmp_path / "scored"
    run_megaslm("score", "--entropy", "--reference", chain.reference, chain.tokens, scored)
    config = changed(config, run, data={"train": str(scored)})
    run_megaslm("train", write_config(tmp_path / "entropy.yaml", config), world_size=2)
    steps = steps_of(run)
    assert len(steps) == 8
    for step in steps:
        assert step["all_loss"] is None
        assert step["excess_quantiles"] == {}
        assert set(step["domain_ratio"]) == {"a", "b"}  # type: ignore[arg-type]
        # Of two sets of 60%, between 20% and 60% are in both.
        assert 0.19 < float(str(step["selected_ratio"])) < 0.61


def test_weights_that_give_no_numbers_stop_the_run_and_its_rows_are_named(
    chain: Chain, tmp_path: Path, says: Says
) -> None:
    broken = Path(shutil.copytree(chain.reference, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "run"
    config = changed(
        chain.slm_config(run),
        run,
        model={"from_run": None, "from_pretrained": str(broken)},
        train={"micro_batch_rows": 4},
    )
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), world_size=2, expect_status=1)
    for step in (1, 2, 3):
        told = line_with(said, f"step {step}/8 · ")
        assert re.search(r" [ab]:\d+, ", told)
        says.without_numbers(re.sub(r"[ab]:\d+", "ROW", told))
    says.without_numbers(re.sub(r"[ab]:\d+", "ROW", line_with(said, "NonFiniteLoss: step 3: ", " 3 ")))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "skipped"] == [1, 2, 3]
    assert not list((run / "checkpoints").glob("*/COMPLETE"))


def test_a_cache_that_does_not_fit_is_refused(chain: Chain, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "run"
    config = changed(chain.slm_config(run), run, slm={"head": "cache", "head_cache_gib": 1e-6, "mode": "running"})
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    says(
        line_with(said, "slm.head = cache: "),
        "3.81e-06 GiB",
        "2 rows",
        f"{SEQ_LEN} targets",
        "slm.head_cache_gib = 1e-06",
    )
    assert not run.exists()
