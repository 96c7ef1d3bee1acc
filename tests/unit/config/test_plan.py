"""The arithmetic of batches and parameters."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from megaslm.config.plan import parameter_count, plan_batches
from megaslm.config.schema import Architecture, DataSection, ModelSection, RunConfig, TrainSection
from megaslm.errors import ConfigError
from tests.messages import Says

MakeRun = Callable[..., RunConfig]

TINYLLAMA = Architecture(
    vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_layers=22, num_heads=32, num_kv_heads=4
)
MISTRAL = Architecture(
    family="mistral",
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
)
SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_layers": 3, "num_heads": 4}


def test_a_batch_is_cut_into_ranks_and_micro_steps(run_config: MakeRun) -> None:
    plan = plan_batches(run_config(), world_size=2)
    assert (plan.global_batch_rows, plan.rows_per_rank) == (8, 4)
    # 3 rows were allowed, but 4 rows divide into 2 and 2 only.
    assert (plan.micro_batch_rows, plan.micro_steps) == (2, 2)
    assert plan.tokens_per_step == 1024
    assert plan.canonical_nodes == 8


@pytest.mark.parametrize(("total_tokens", "steps"), [(1024, 1), (2047, 1), (2048, 2), (1000, 1), (100_000, 97)])
def test_steps_are_those_that_fit_and_at_least_one(run_config: MakeRun, total_tokens: int, steps: int) -> None:
    assert plan_batches(run_config(f"train.total_tokens={total_tokens}"), 1).total_steps == steps


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (1024, 1), (2047, 1), (2048, 2), (10_240, 10)])
def test_an_interval_is_never_longer_than_asked(run_config: MakeRun, tokens: int, steps: int) -> None:
    assert plan_batches(run_config(), 1).steps_of(tokens) == steps


@pytest.mark.parametrize(
    ("total", "interval", "steps"),
    [
        (9, 4, [4, 8, 9]),
        (8, 4, [4, 8]),
        (3, None, [3]),
        (3, 5, [3]),
        (22, 20, [20, 22]),
        # One step is a tenth of 10 steps, and less of 11.
        (11, 10, [10, 11]),
        (12, 11, [12]),
        (56, 11, [11, 22, 33, 44, 56]),
    ],
)
def test_work_is_due_after_each_interval_but_for_the_very_end(
    run_config: MakeRun, total: int, interval: int | None, steps: list[int]
) -> None:
    plan, every = plan_batches(run_config(f"train.total_tokens={total * 1024}"), 1), interval and interval * 1024
    assert [step for step in range(1, total + 1) if plan.is_due(every, step)] == steps
    for after in range(total + 1):
        assert plan.times_due(every, after_step=after) == sum(step > after for step in steps)


def test_ranks_that_do_not_divide_the_rows_are_refused_with_what_would(run_config: MakeRun, says: Says) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_batches(run_config(), world_size=3)
    message = str(caught.value)
    says(message, "train.global_batch_tokens = 1024", "1, 2, 4, 8", "train.global_batch_tokens = 768", "1152")


def test_more_ranks_than_rows_are_refused(run_config: MakeRun, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_batches(run_config(), world_size=16)
    says(refused, "train.global_batch_tokens = 2048")


@pytest.mark.parametrize("world_size", [0, -1])
def test_no_ranks_are_refused(run_config: MakeRun, world_size: int, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_batches(run_config(), world_size)
    says(refused, world_size)


@given(rows=some.integers(1, 500), world_size=some.integers(1, 64), limit=some.integers(1, 64))
def test_a_plan_covers_the_batch_exactly(rows: int, world_size: int, limit: int) -> None:
    config = RunConfig(
        run_dir="r",
        model=ModelSection(from_run="b"),
        data=DataSection(train="d", seq_len=4),
        train=TrainSection(
            objective="clm", total_tokens=10**6, global_batch_tokens=4 * rows * world_size, micro_batch_rows=limit, lr=1
        ),
    )
    plan = plan_batches(config, world_size)
    assert plan.world_size * plan.micro_steps * plan.micro_batch_rows == plan.global_batch_rows == rows * world_size
    larger = range(plan.micro_batch_rows + 1, limit + 1)
    assert plan.micro_batch_rows <= limit
    assert not [n for n in larger if plan.rows_per_rank % n == 0]
    assert plan.global_batch_rows % plan.canonical_nodes == 0


def test_published_models_are_counted_exactly() -> None:
    assert parameter_count(TINYLLAMA).total == 1_100_048_384
    assert parameter_count(MISTRAL).total == 7_241_732_096


@pytest.mark.parametrize(
    ("family", "num_kv_heads", "tied"),
    [("llama", None, False), ("llama", 2, True), ("mistral", None, True), ("mistral", 2, False)],  # every pair
)
def test_the_count_is_that_of_the_model_built(family: str, num_kv_heads: int | None, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = Architecture.model_validate(
        {**SMALL, "family": family, "num_kv_heads": num_kv_heads, "tie_embeddings": tied}
    )
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads or shape.num_heads,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    counts = parameter_count(shape)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert counts.embedding == model.get_input_embeddings().weight.numel()
    assert counts.head == (0 if tied else model.get_output_embeddings().weight.numel())
