"""Training runs: resumed ones, SLM at k = 1, and what is exported."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megaslm.dataset.rows import RowReader
from megaslm.model import traced_memory
from megaslm.model.documents import CPU_KERNEL
from megaslm.observe.records import read_validations
from megaslm.slm.rule import Moment
from megaslm.stream.loader import MicroBatch
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.checkpoints.saver import Saver
from megaslm.training.checkpoints.state_files import StoredWeights
from megaslm.training.loop import learning_rate
from megaslm.training.step import StepResult, TrainStep
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.toy import EOS_ID, SEQ_LEN, make_dataset, run_config, write_config
from tests.training import changed, run_training, with_steps


def steps_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = ("step", "tokens", "loss", "all_loss", "selected_ratio", "learning_rate", "gradient_norm")
    return [{name: line[name] for name in measured} for line in lines if line["kind"] == "step"]


def weights_after(run: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(StoredWeights(run / "checkpoints" / f"step-{step:08d}"))


def test_a_resumed_and_extended_run_repeats_the_undisturbed_one(chain: Chain, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "slm"
    shutil.copytree(chain.slm_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    config = write_config(tmp_path / "slm.yaml", chain.slm_config(run))

    refused = run_megaslm("train", config, world_size=2, expect_status=2)
    says(refused, f"run_dir = {run}: ")
    longer = ("--resume", "--set", f"train.total_tokens={10 * 8 * SEQ_LEN}")
    refused = run_megaslm("train", config, *longer, world_size=2, expect_status=2)
    assert "--allow-changed train.total_tokens" in refused
    longer = (*longer, "--allow-changed", "train.total_tokens", "--set", "checkpoint.keep_last=3")
    said = run_megaslm("train", config, *longer, world_size=2)

    assert "train.total_tokens: 1024 → 1280" in said
    assert CPU_KERNEL in said
    undisturbed, resumed = steps_of(chain.slm_run), steps_of(run)
    assert [record["step"] for record in resumed] == list(range(1, 11))
    assert resumed[:8] == undisturbed
    assert (run / "checkpoints" / "step-00000010" / "COMPLETE").is_file()
    # A checkpoint of the shorter run is one of eight steps still.
    run_megaslm("export", run / "checkpoints" / "step-00000004", tmp_path / "half")
    exported = json.loads((tmp_path / "half" / "cost.json").read_text())["training"]
    assert (exported["steps"], exported["total_steps"]) == (4, 8)


def test_a_finished_run_is_told_before_the_imports(chain: Chain, tmp_path: Path, says: Says) -> None:
    run = Path(shutil.copytree(chain.slm_run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    config = write_config(tmp_path / "run.yaml", chain.slm_config(run))
    says(run_megaslm("train", config, "--resume", world_size=2), "8 steps")
    says(run_megaslm("train", config, expect_status=2), run, "is finished")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (run / "checkpoints" / "step-00000008" / "COMPLETE").unlink()
    said = run_megaslm("train", config, "--resume", world_size=2)
    says(line_with(said, " step 4, ", run / "checkpoints" / "step-00000004"))
    assert [record["step"] for record in steps_of(run)] == list(range(1, 9))


def test_a_save_is_told_before_the_validation_of_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it was written before that step began."""
    begin = Saver.begin

    def begin_and_write(saver: Saver, progress: Progress) -> None:
        begin(saver, progress)
        assert saver._write is not None
        saver._write.wait()

    monkeypatch.setattr(Saver, "begin", begin_and_write)
    make_dataset(tmp_path / "tokens", {("train", "a"): [20], ("heldout", "a"): [3]})
    config = run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        checkpoint={"every_tokens": 5 * 8 * SEQ_LEN},
        validation={"sets": {"held": {"dataset": str(tmp_path / "tokens")}}},
    )
    run_training(config)
    told = [line for line in capfd.readouterr().out.splitlines() if "saved step 5" in line or "step 6 · held" in line]
    assert ["saved" in line for line in told] == [True, False]


def test_each_step_is_made_at_the_rate_of_its_schedule(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [40]})
    config = run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        train={"warmup_tokens": 3 * 8 * SEQ_LEN, "weight_decay": 0.0, "eps": 1e-20},
        checkpoint={"every_tokens": 8 * SEQ_LEN, "keep_last": 6},
    )
    run_training(config)
    rates = [learning_rate(config.train, step * 8 * SEQ_LEN) for step in range(1, 7)]
    assert [record["learning_rate"] for record in steps_of(tmp_path / "run")] == pytest.approx(rates)

    run_training(changed(config.model_copy(update={"run_dir": str(tmp_path / "still")}), train={"lr": 1e-30}))
    moved = weights_after(tmp_path / "run", 1)
    for name, initial in weights_after(tmp_path / "still", 1).items():
        # Adam's first step is as long as its rate wherever there is a gradient.
        assert float((moved[name] - initial).abs().max()) == pytest.approx(rates[0], rel=1e-3), name


def test_the_seed_of_dropout_depends_on_step_and_rank_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [40]})
    make_step, seeds = TrainStep.__call__, tmp_path / "seeds"

    def noting(self: TrainStep, rows: Sequence[MicroBatch], moment: Moment, learning_rate: float) -> StepResult:
        with seeds.open("a") as file:
            file.write(f"{self.world.rank} {moment.step} {torch.initial_seed()}\n")
        return make_step(self, rows, moment, learning_rate)

    def seeds_of(name: str, *lengths: int) -> list[list[str]]:
        """Rank, step and seed of the steps of a run that is lengthened and resumed."""
        seeds.unlink(missing_ok=True)
        for length in lengths:
            config = with_steps(run_config(tmp_path / name, tmp_path / "tokens"), length)
            run_training(config, world_size=2, resume=length != lengths[0])
        return sorted(line.split() for line in seeds.read_text().splitlines())

    monkeypatch.setattr(TrainStep, "__call__", noting)
    found = seeds_of("whole", 4)
    assert len({seed for _, _, seed in found}) == len(found) == 2 * 4
    assert seeds_of("resumed", 2, 4) == found


def test_one_rank_trains_on_what_two_trained_on(chain: Chain, tmp_path: Path) -> None:
    run_training(chain.slm_config(tmp_path / "slm"))
    by_one_rank, by_two_ranks = (read_validations(run / "metrics.jsonl") for run in (tmp_path / "slm", chain.slm_run))
    for by_one, by_two in zip(by_one_rank, by_two_ranks, strict=True):
        assert by_one.targets == by_two.targets
        assert by_one.loss == pytest.approx(by_two.loss, rel=1e-4)
    for alone, together in zip(steps_of(tmp_path / "slm"), steps_of(chain.slm_run), strict=True):
        assert alone["selected_ratio"] == together["selected_ratio"]
        assert alone == pytest.approx(together, rel=1e-4)


def test_slm_that_keeps_everything_is_clm_bit_for_bit(chain: Chain, tmp_path: Path) -> None:
    def train(name: str, objective: str, keep_ratio: float) -> list[dict[str, float]]:
        config = run_config(
            tmp_path / name,
            chain.scored,
            train={"objective": objective, "total_tokens": 8 * 8 * SEQ_LEN},
            slm={"keep_ratio": keep_ratio},
        )
        run_training(config)
        return steps_of(tmp_path / name)

    causal, selective = train("clm", "clm", 0.6), train("slm", "slm", 1)
    assert len(causal) == 8
    assert causal == selective


def test_slm_selects_k_of_each_step(chain: Chain) -> None:
    # 0.6 of at most 128 targets a step, rounded.
    assert all(abs(record["selected_ratio"] - 0.6) <= 0.5 / 60 for record in steps_of(chain.slm_run))


def test_the_exported_model_gives_the_reported_loss_in_plain_transformers(chain: Chain) -> None:
    lm = AutoModelForCausalLM.from_pretrained(chain.reference)
    tokenizer = AutoTokenizer.from_pretrained(chain.reference)
    assert tokenizer.eos_token_id == EOS_ID
    assert len({path.stat().st_mode for path in chain.reference.iterdir()}) == 1
    reader = RowReader(chain.tokens, "heldout", "a")
    losses = []
    for number in range(len(reader)):
        row = torch.tensor(reader[number]["tokens"].astype("int64"))
        starts = [0, *(place + 1 for place in range(SEQ_LEN) if row[place] == EOS_ID)]
        ends = [*(start - 1 for start in starts[1:]), SEQ_LEN]  # What an EOS would predict is another document.
        for start, end in zip(starts, ends, strict=True):
            if start < end:
                with torch.no_grad():
                    logits = lm(row[None, start:end]).logits[0]
                losses.append(torch.nn.functional.cross_entropy(logits, row[start + 1 : end + 1], reduction="none"))
    reported = read_validations(chain.reference_run / "metrics.jsonl")[-1]
    measured = torch.cat(losses)
    assert reported.targets == len(measured)
    assert abs(float(measured.mean()) - reported.loss) < 1e-4


def test_an_export_has_the_cost_of_its_checkpoint(chain: Chain, tmp_path: Path) -> None:
    half, whole = tmp_path / "half", tmp_path / "whole"
    run_megaslm("export", chain.slm_run / "checkpoints" / "step-00000004", half)
    run_megaslm("export", chain.slm_run, whole)
    costs = [json.loads((folder / "cost.json").read_text()) for folder in (half, whole)]
    assert costs[1] == json.loads((chain.slm_run / "cost.json").read_text())
    trained = [cost["training"] for cost in costs]
    assert [each["tokens_seen"] for each in trained] == [4 * 8 * SEQ_LEN, 8 * 8 * SEQ_LEN]
    assert 0 < trained[0]["tokens_selected"] < trained[1]["tokens_selected"]
    assert 0 < trained[0]["seconds"] < trained[1]["seconds"]
    assert costs[0]["reference_training"] == costs[1]["reference_training"]
    assert [(each["steps"], each["total_steps"]) for each in trained] == [(4, 8), (8, 8)]
    for cost in costs:
        assert sum(domain["tokens_seen"] for domain in cost["domains"].values()) == cost["training"]["tokens_seen"]


def test_an_unfinished_reference_is_told(chain: Chain, tmp_path: Path, says: Says) -> None:
    """By the export, by the scoring with it, and by a run that starts from it."""
    half = tmp_path / "half"
    exported = run_megaslm("export", chain.slm_run / "checkpoints" / "step-00000004", half)
    says(_warnings(exported), "step-00000004", "step 4 of 8")
    scored = run_megaslm("score", "--reference", half, chain.tokens, tmp_path / "scored")
    says(_warnings(scored), str(half), "step 4 of 8")
    run = run_config(tmp_path / "run", chain.tokens, model={"from_scratch": None, "from_pretrained": str(half)})
    trained = run_megaslm("train", write_config(tmp_path / "run.yaml", run))
    says(_warnings(trained), str(half), "step 4 of 8")
    assert _warnings(run_megaslm("export", chain.slm_run, tmp_path / "whole")) == ""


def _warnings(printed: str) -> str:
    return "\n".join(line for line in printed.splitlines() if line.startswith("warning: "))


def test_cost_counts_scoring_and_the_reference(chain: Chain) -> None:
    cost = json.loads((chain.slm_run / "cost.json").read_text())
    assert set(cost) == {"training", "shard_checks", "domains", "scoring", "reference_training", "datasets"}
    assert set(cost["datasets"]) == {"data.train"}
    for stage in ("scoring", "reference_training"):
        assert cost[stage]["seconds"] == cost["datasets"]["data.train"][stage]["seconds"] > 0
    assert cost["training"]["tokens_seen"] == 8 * 8 * SEQ_LEN
    assert cost["training"]["tokens_selected"] < cost["training"]["tokens_seen"]


def test_what_was_read_of_each_domain_adds_up(chain: Chain) -> None:
    domains = json.loads((chain.slm_run / "cost.json").read_text())["domains"]
    assert set(domains) == {"a", "b"}
    assert sum(domain["tokens_seen"] for domain in domains.values()) == 8 * 8 * SEQ_LEN
    # 64 rows of 65 make an epoch of 8 steps.
    assert 34 / 35 <= domains["a"]["passes"] <= 1
    assert 29 / 30 <= domains["b"]["passes"] <= 1
    lines = [json.loads(line) for line in (chain.slm_run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "step"][-1]
    assert last["domain_tokens"] == {name: domain["tokens_seen"] for name, domain in domains.items()}
    assert last["domain_passes"] == {name: domain["passes"] for name, domain in domains.items()}


def test_the_model_of_another_vocabulary_is_refused_by_name(chain: Chain, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    make_dataset(larger, {("train", "a"): [10]}, vocab_size=200)
    config = run_config(tmp_path / "run", larger, model={"from_scratch": None, "from_pretrained": str(chain.reference)})
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    assert said.count("\n") < 5
    assert str(chain.reference) in said
    assert str(larger) in said
    assert not (tmp_path / "run").exists()


def test_a_run_tells_the_memory_that_was_predicted_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It traces the model itself, beside DeepSpeed's hooks, whatever another run has traced.
    for results in ("_traced", "_counted"):
        monkeypatch.setattr(traced_memory, results, {})
    make_dataset(tmp_path / "tokens", {("train", "a"): [60]})
    config = run_config(tmp_path / "run", tmp_path / "tokens")
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), world_size=2)
    found = json.loads((tmp_path / "run" / "memory.json").read_text())
    states = sum(found["parts"][name] for name in ("process", "weights", "gradients", "optimizer", "buffers"))
    assert found["predicted_bytes"] == states + found["moments"][found["moment"]]
    assert found["resident_bytes"] >= found["measured_bytes"] > found["parts"]["process"] > 0
    # Once, however many reports follow.
    (line,) = [line for line in said.splitlines() if line.startswith("memory: predicted ")]
    assert f"({found['measured_bytes'] / found['predicted_bytes']:.0%})" in line


def test_a_memory_file_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [60]})
    (tmp_path / "run" / "memory.json").mkdir(parents=True)
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens")))
    assert any(line.startswith("warning:") and "memory.json" in line for line in said.splitlines())
    assert (tmp_path / "run" / "checkpoints" / "step-00000006" / "COMPLETE").is_file()
