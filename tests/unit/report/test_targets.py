"""Tokens, operations and seconds until a loss of the baseline; runs that are a sweep; what came before them."""

import json
from pathlib import Path
from typing import Any

import pytest

from megaslm.report.costs import costs_of
from megaslm.report.curves import run_entries
from megaslm.report.document import in_short
from megaslm.report.runs import ReportedRun, read_runs
from megaslm.report.sweep import sweep_of
from megaslm.report.targets import baseline_of, targets_of
from tests.messages import Says
from tests.reported import FORWARD_FLOPS, PLACE, STEP_TOKENS, STEPS, cost_of, scored_cost, validation_line, write_run

CLM = (4.0, 3.0, 2.0)
FAST, NEVER = (4.0, 2.0, 1.0), (4.0, 3.5, 3.0)


@pytest.fixture(autouse=True)
def _within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def clm(name: str = "clm", **changes: Any) -> Path:
    return write_run(Path(name), losses=CLM, cost=cost_of(seconds=60.0), **changes)


def slm(name: str, losses: tuple[float, ...], keep_ratio: str = "0.5", **changes: Any) -> Path:
    cost = scored_cost(seconds=60.0, ratio=float(keep_ratio), reference=100.0, scoring=20.0)
    return write_run(Path(name), losses=losses, **{"keep_ratio": keep_ratio, "cost": cost, **changes})


def runs(*folders: Path) -> list[ReportedRun]:
    return read_runs(folders)


def test_a_loss_is_reached_on_the_line_between_two_validations(says: Says) -> None:
    (table,) = targets_of(runs(slm("slm", FAST), clm()))
    assert (table["place"], table["baseline"]) == (PLACE, "clm")
    assert [row["loss"] for row in table["rows"]] == [3.0, 2.5, 2.0]
    fast, plain = table["rows"][1]["reached"]
    # FAST falls from 4 to 2 in 3 steps, and so comes to 2.5 after 2.25 steps; CLM after 4.5.
    tokens = 2.25 * STEP_TOKENS
    assert fast == {
        "run": "slm",
        "tokens": pytest.approx(tokens),
        "selected_tokens": pytest.approx(tokens / 2),
        "flops": pytest.approx(3 * FORWARD_FLOPS * tokens),
        "seconds": pytest.approx(22.5),
        "gpu_hours": None,
        "flops_with_reference": None,
        "seconds_with_reference": pytest.approx(142.5),
        "gpu_hours_with_reference": None,
    }
    assert (plain["seconds"], plain["seconds_with_reference"]) == (pytest.approx(45.0), pytest.approx(45.0))
    says(table["sentence"], "slm", "clm", "2.0000", "50%")


def said_in_short(found: list[ReportedRun]) -> str:
    return "\n".join(in_short(found, costs_of(found), sweep_of(found)))


def test_in_short_each_selective_run_has_a_sentence_for_each_place(says: Says) -> None:
    says(
        said_in_short(runs(clm(), slm("fast", FAST), slm("never", NEVER, "0.6"))), "1.0000 nats lower", "higher", "50%"
    )


def test_in_short_a_reference_that_is_worse_than_the_baseline_is_told(says: Says) -> None:
    selective = slm("slm", FAST)
    training = json.loads((selective / "cost.json").read_text())["reference_training"]
    sections, plain = {"train": {"lr": 0.5}, "data": {"shuffle_seed": 3}}, clm()
    for name, losses, is_worse in (("weak", (4.0, 3.0, 2.5), True), ("good", (4.0, 2.0, 1.5), False)):
        reference = write_run(Path(name), losses=losses, cost={"training": training}, sections=sections)
        told = [line for line in said_in_short(runs(reference, plain, selective)).splitlines() if line.startswith(name)]
        assert len(told) == is_worse
        if is_worse:
            says(told[0], "2.5000", "clm")


def test_in_short_an_unfinished_run_is_told_beside_the_baseline_at_as_many_tokens(says: Says) -> None:
    said = said_in_short(runs(clm(), slm("half", NEVER, steps=4)))
    # CLM falls from 4 to 2 in six steps, and so is at 3 after three.
    says(said, "so far", "0.5000", "3.0000", f"{3 * STEP_TOKENS:,}")


def test_in_short_a_run_that_has_read_more_than_the_baseline_is_told(says: Says) -> None:
    says(said_in_short(runs(clm(steps=4), slm("slm", FAST))), "1.0000 against 3.0000", f"{3 * STEP_TOKENS:,}")


def test_in_short_a_sweep_names_its_best_value(says: Says) -> None:
    says(said_in_short(runs(slm("a", NEVER, "0.2"), slm("b", FAST, "0.4"))), "0.4", "1.0000")


def test_in_short_nothing_is_said_where_nothing_is_compared() -> None:
    assert said_in_short(runs(slm("alone", FAST))) == ""


def test_a_run_that_never_reaches_the_loss_says_so(says: Says) -> None:
    (table,) = targets_of(runs(clm(), slm("slm", NEVER)))
    assert set(table["rows"][-1]["reached"][1].values()) == {"slm", None}
    says(table["sentence"], "slm", "3.0000")
    says(costs_of(runs(Path("clm"), Path("slm")))["break_even"][0]["sentence"], "slm")


def test_the_baseline_is_the_clm_run_that_differs_least() -> None:
    reference = clm("reference", sections={"train": {"lr": 0.5}, "data": {"shuffle_seed": 3}})
    found = baseline_of(runs(reference, clm(), slm("slm", FAST)))
    assert found is not None
    assert found.name == "clm"


def test_without_runs_of_both_kinds_there_is_no_table() -> None:
    for found in (runs(clm(), clm("other")), runs(slm("slm", FAST))):
        assert (targets_of(found), costs_of(found)["break_even"]) == ([], [])


def test_a_baseline_that_diverged_has_no_table() -> None:
    plain = clm()
    with (plain / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(validation_line(STEPS, None)) + "\n")
    found = runs(plain, slm("slm", FAST))
    assert (targets_of(found), costs_of(found)["break_even"]) == ([], [])


def test_what_came_before_pays_for_itself_after_some_runs(says: Says) -> None:
    costs = costs_of(runs(clm(), slm("fast", FAST), slm("slow", (4.0, 3.0, 2.0), "0.75")))
    assert [(row["run"], row["what"], row["seconds"], row["shared_by"]) for row in costs["rows"]] == [
        ("fast", "reference training", 100.0, ["fast", "slow"]),
        ("fast", "scoring", 20.0, ["fast", "slow"]),
        ("clm", "training", pytest.approx(60.0), []),
        ("fast", "training", pytest.approx(60.0), []),
        ("slow", "training", pytest.approx(60.0), []),
    ]
    fast, slow = costs["break_even"]
    # FAST comes to 2.0 after 3 of 6 steps: 30 of 60 seconds are saved, of 120 spent once.
    assert (fast["saved_seconds_per_run"], fast["spent_once_seconds"]) == (pytest.approx(30.0), 120.0)
    assert fast["runs"] == pytest.approx(4.0)
    assert (slow["runs"], slow["is_known"]) == (None, True)
    says(fast["sentence"], "4.0")
    says(slow["sentence"])


def test_a_reference_whose_own_run_is_reported_is_counted_once() -> None:
    selective = slm("slm", FAST)
    trained = json.loads((selective / "cost.json").read_text())["reference_training"]
    reference = write_run(Path("reference"), cost={"training": trained})
    costs = costs_of(runs(clm(), selective, reference))
    assert [(row["run"], row["what"], row["shared_by"]) for row in costs["rows"]] == [
        ("slm", "scoring", ["slm"]),
        ("clm", "training", []),
        ("slm", "training", []),
        ("reference", "training of the reference", ["slm"]),
    ]
    assert sum(row["seconds"] for row in costs["rows"]) == pytest.approx(20.0 + 60.0 + 60.0 + 100.0)
    (balance,) = costs["break_even"]
    assert balance["spent_once_seconds"] == 120.0


def test_a_reference_is_no_point_of_a_sweep() -> None:
    one, other = slm("slm-0.4", FAST, "0.4"), slm("slm-0.6", FAST, "0.6")
    trained = json.loads((one / "cost.json").read_text())["reference_training"]
    reference = write_run(Path("reference"), sections={"data": {"domains": ["a"]}}, cost={"training": trained})
    found = sweep_of(runs(reference, clm(), one, other))
    assert found is not None
    assert found["key"] == "slm.keep_ratio"


def test_a_setting_that_is_a_list_is_a_text_of_its_values() -> None:
    found = sweep_of(runs(clm("one", sections={"data": {"domains": ["a", "b"]}}), clm("other")))
    assert found is not None
    assert {point["value"] for point in found["metrics"][0]["points"]} == {"a, b", None}


def test_a_second_forward_pass_is_in_the_flops_where_it_is_known(says: Says) -> None:
    several = {"train": {"micro_batch_rows": 4}}
    told, silent = slm("told", FAST, sections=several), slm("silent", FAST, sections=several)
    reports = [{"kind": "report", "step": step, "second_pass_ratio": ratio} for step, ratio in ((2, 0.0), (STEPS, 1.0))]
    with (told / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(report) + "\n" for report in reports)
    known, unknown, single = runs(told, silent, slm("single", FAST))
    assert known.spent.flops is not None
    passes = [3, 3, 4, 4, 4, 4]
    assert known.spent.flops[-1] == pytest.approx(sum(passes) * STEP_TOKENS * FORWARD_FLOPS)
    assert any("67%" in value for _, value in run_entries([known])[0]["facts"])
    assert unknown.spent.flops is not None
    assert unknown.spent.flops[-1] == pytest.approx(3 * STEPS * STEP_TOKENS * FORWARD_FLOPS)
    assert known.notes == single.notes
    says("\n".join(note for note in unknown.notes if note not in single.notes))


def test_on_gpus_the_balance_is_in_gpu_hours(says: Says) -> None:
    cost = scored_cost(seconds=60.0, ratio=0.5, reference=100.0, scoring=20.0)
    cost["training"]["gpu_hours"] = 6.0
    for place in (cost, cost["datasets"]["data.train"]):
        place["scoring"] = {"seconds": 20.0, "gpu_hours": 2.0}
        place["reference_training"] = place["reference_training"] | {"gpu_hours": 10.0}
    plain = write_run(Path("clm"), losses=CLM, cost=cost_of(seconds=60.0, gpu_hours=6.0))
    (balance,) = costs_of(runs(plain, slm("slm", FAST, cost=cost)))["break_even"]
    assert (balance["saved_gpu_hours_per_run"], balance["spent_once_gpu_hours"]) == (pytest.approx(3.0), 12.0)
    assert balance["runs"] == pytest.approx(4.0)
    says(balance["sentence"], "12.00 GPU-hours")


def test_on_gpus_with_a_reference_of_cpus_the_balance_is_in_seconds() -> None:
    cost = scored_cost(seconds=60.0, ratio=0.5, reference=100.0, scoring=20.0)
    cost["training"]["gpu_hours"] = 6.0
    plain = write_run(Path("clm"), losses=CLM, cost=cost_of(seconds=60.0, gpu_hours=6.0))
    (balance,) = costs_of(runs(plain, slm("slm", FAST, cost=cost)))["break_even"]
    assert (balance["spent_once_gpu_hours"], balance["spent_once_seconds"]) == (None, 120.0)
    assert (balance["runs"], balance["is_known"]) == (pytest.approx(4.0), True)


def test_costs_that_are_not_known_are_not_guessed(tmp_path: Path, says: Says) -> None:
    cost = scored_cost(seconds=60.0, ratio=0.5, reference=100.0, scoring=20.0)
    # As scoring writes it where no cost.json was beside the reference.
    del cost["datasets"]["data.train"]["reference_training"]
    cost["reference_training"] = {"seconds": 0, "gpu_hours": 0}
    found = runs(clm(), slm("slm", FAST, cost=cost))
    (balance,) = costs_of(found)["break_even"]
    assert (balance["runs"], balance["spent_once_seconds"], balance["is_known"]) == (None, None, False)
    says(balance["sentence"])
    says("\n".join(found[1].notes).replace(str(tmp_path), "FOLDER"), "cost.json", "data/scored")


def test_a_control_needs_no_reference() -> None:
    (run,) = runs(slm("random", FAST, sections={"slm": {"criterion": "random"}}, cost=cost_of(seconds=60.0)))
    assert run.before.total("seconds") == 0.0
    assert run.notes == ()


def test_paths_of_a_run_are_those_of_where_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    write_run(Path("other"))
    slm("runs/slm", FAST, sections={"slm": {"reference": "other/model"}})
    monkeypatch.chdir(tmp_path)
    (run,) = runs(Path("project/runs/slm"))
    assert run.before.corpus == (str(tmp_path / "project" / "data" / "scored"),)
    assert run.before.reference_training.flops == pytest.approx(1000 * 3 * FORWARD_FLOPS)
    (tmp_path / "project").rename(tmp_path / "moved")
    (tmp_path / "moved" / "runs" / "slm").rename(tmp_path / "alone")
    (run,) = runs(Path("alone"))
    assert run.before.corpus == ("data/scored",)


def test_operations_of_the_reference_follow_from_its_folder() -> None:
    model = write_run(Path("other")) / "model"
    (run,) = runs(slm("slm", FAST, sections={"slm": {"reference": str(model)}}))
    assert run.before.reference_training.flops == pytest.approx(1000 * 3 * FORWARD_FLOPS)
    # How many targets it scored is in scores.json only.
    assert run.before.scoring.flops is None


def test_a_sweep_is_a_curve_over_its_setting_with_clm_at_one(says: Says) -> None:
    ratios = {"0.8": 1.5, "0.2": 3.0, "0.4": 2.5}
    folders = [slm(f"slm-{ratio}", (4.0, end), ratio) for ratio, end in ratios.items()]
    failed = slm("slm-0.6", (4.0, 2.0), "0.6", steps=4)
    found = sweep_of(runs(*folders, failed, clm()))
    assert found is not None
    assert found["key"] == "slm.keep_ratio"
    assert [(point["run"], point["value"], point["loss"]) for point in found["metrics"][0]["points"]] == [
        ("slm-0.2", 0.2, 3.0),
        ("slm-0.4", 0.4, 2.5),
        ("slm-0.8", 0.8, 1.5),
        ("clm", 1.0, 2.0),
    ]
    says("\n".join(found["left_out"]), "slm-0.6", "4 of 6")


def test_a_comparison_of_objectives_on_the_same_dataset_is_no_sweep() -> None:
    same = {"data": {"train": "data/scored"}}
    one, other = slm("slm-0.4", FAST, "0.4"), slm("slm-0.6", FAST, "0.6")
    plain = clm(sections={**same, "slm": {"keep_ratio": "0.6"}})
    assert sweep_of(runs(plain, other)) is None
    found = sweep_of(runs(plain, other, one))
    assert found is not None
    assert found["key"] == "slm.keep_ratio"


def test_the_sums_of_an_earlier_build_are_taken_as_they_are() -> None:
    cost = scored_cost(seconds=60.0, ratio=0.5, reference=100.0, scoring=20.0)
    del cost["datasets"]
    (run,) = runs(slm("slm", FAST, cost=cost))
    assert run.before.total("seconds") == 120.0


def test_a_clm_run_of_other_settings_is_no_point_of_the_sweep() -> None:
    other = clm(sections={"train": {"lr": 0.5}})
    found = sweep_of(runs(slm("a", FAST, "0.2"), slm("b", FAST, "0.4"), other))
    assert found is not None
    assert [point["run"] for point in found["metrics"][0]["points"]] == ["a", "b"]


def test_runs_that_differ_in_another_setting_are_a_sweep_too() -> None:
    folders = [clm(f"lr{lr}", sections={"train": {"lr": lr}, "log": {"every_steps": 1}}) for lr in (0.1, 0.01)]
    found = sweep_of(runs(*folders))
    assert found is not None
    assert found["key"] == "train.lr"
    assert [point["value"] for point in found["metrics"][0]["points"]] == [0.01, 0.1]


def test_tasks_are_metrics_of_a_sweep() -> None:
    folders = [slm(f"slm-{ratio}", FAST, ratio) for ratio in ("0.4", "0.6")]
    for number, folder in enumerate(folders):
        line = {
            "kind": "task",
            "step": STEPS,
            "tokens": 1,
            "name": "sums",
            "accuracy": number / 4,
            "items": 8,
            "empty": 0,
        }
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    found = sweep_of(runs(*folders))
    assert found is not None
    assert [(one["place"], one["measure"]) for one in found["metrics"]] == [
        (PLACE, "loss in nats"),
        ("sums", "accuracy"),
    ]
    assert [point["loss"] for point in found["metrics"][1]["points"]] == [0.0, 0.25]


def test_runs_that_differ_in_two_settings_are_no_sweep() -> None:
    other = clm("other", sections={"train": {"lr": 0.5, "beta1": 0.5}})
    assert sweep_of(runs(clm(), other)) is None
