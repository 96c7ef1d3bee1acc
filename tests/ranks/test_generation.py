"""A model that is being trained continues texts: equal ones on 1 and 2 ranks, and training continues after it."""

from pathlib import Path

import pytest

from megaslm.generation.sampling import Completion
from tests.rank_pool import RankPool
from tests.ranks.generation_worker import generate_live, plain_completions
from tests.toy import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation") / "tokenizer"
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def expected(tokenizer: Path) -> dict[str, list[Completion]]:
    return plain_completions(tokenizer)


@pytest.mark.parametrize(
    ("stage", "checkpointing"), [(3, True), (1, False), pytest.param(3, False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_live_model_gives_the_completions_of_the_plain_one(
    ranks: RankPool,
    lone_rank: RankPool,
    tokenizer: Path,
    expected: dict[str, list[Completion]],
    world_size: int,
    stage: int,
    checkpointing: bool,
) -> None:
    assert {completion.ended for completions in expected.values() for completion in completions} >= {"stop", "length"}
    for found in (lone_rank, ranks)[world_size - 1].run(generate_live, tokenizer, stage, checkpointing):
        assert found == expected
