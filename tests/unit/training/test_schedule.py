import pytest

from megaslm.config.schema import TrainSection
from megaslm.training.loop import learning_rate


def section(**changes: object) -> TrainSection:
    settings = {
        "objective": "clm",
        "total_tokens": 1000,
        "global_batch_tokens": 10,
        "micro_batch_rows": 1,
        "lr": 1.0,
        "warmup_tokens": 100,
        "min_lr_ratio": 0.1,
    }
    return TrainSection.model_validate({**settings, **changes})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_rises_linearly_to_the_peak(schedule: str) -> None:
    train = section(schedule=schedule, decay_tokens=200)
    assert learning_rate(train, 50) == pytest.approx(0.5)
    assert learning_rate(train, 100) == 1.0


def test_cosine_passes_the_middle_and_ends_at_the_floor() -> None:
    train = section(schedule="cosine")
    assert learning_rate(train, 550) == pytest.approx(0.55)
    assert learning_rate(train, 1000) == pytest.approx(0.1)
    assert learning_rate(train, 1010) == pytest.approx(0.1)


def test_linear_falls_evenly_and_ends_at_the_floor() -> None:
    train = section(schedule="linear")
    assert learning_rate(train, 325) == pytest.approx(0.775)
    assert learning_rate(train, 550) == pytest.approx(0.55)
    assert learning_rate(train, 1000) == pytest.approx(0.1)
    assert learning_rate(train, 1010) == pytest.approx(0.1)


def test_wsd_stays_and_falls_at_the_end() -> None:
    train = section(schedule="wsd", decay_tokens=200)
    assert learning_rate(train, 800) == 1.0
    assert learning_rate(train, 900) == pytest.approx(0.55)
    assert learning_rate(train, 1000) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert learning_rate(section(schedule="constant"), 1000) == 1.0
