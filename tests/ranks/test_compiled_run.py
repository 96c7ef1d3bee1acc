"""Whole runs whose layers Inductor compiles, on ranks that share a cache of compiled code."""

from pathlib import Path

import pytest

from megaslm.config.schema import RunConfig
from tests.toy import make_dataset, run_config
from tests.training import last_weights, losses, run_training, with_steps

pytestmark = pytest.mark.slow


def test_a_compiled_run_learns_the_same_and_may_be_resumed_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks compile side by side. A later start finds the code that an earlier one left, and computes the same bits."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    make_dataset(tmp_path / "tokens", {("train", "a"): [60]})

    def four_steps(name: str, compiled: str) -> RunConfig:
        config = run_config(
            tmp_path / name,
            tmp_path / "tokens",
            model={"compile": compiled},
            train={"objective": "slm", "schedule": "constant", "micro_batch_rows": 2},
            slm={"criterion": "loss"},
        )
        return with_steps(config, 4)

    run_training(four_steps("plain", "off"), world_size=2)
    assert not cache.exists()
    run_training(four_steps("compiled", "on"), world_size=2)
    assert list((cache / "fxgraph").rglob("*"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)

    again = tmp_path / "again"
    run_training(with_steps(four_steps("again", "on"), 2), world_size=2)
    assert losses(again) == losses(tmp_path / "compiled")[:2]
    run_training(four_steps("again", "off"), world_size=2, resume=True)
    assert losses(again) == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    found, expected = last_weights(again), last_weights(tmp_path / "plain")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 1e-4 * weight.norm(), name
