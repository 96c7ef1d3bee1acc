"""Which settings of a run may change when it is resumed."""

from pathlib import Path
from typing import Any

import pytest

from megaslm.config.load import settings_of
from megaslm.config.schema import RunConfig
from megaslm.config.source import dotted_key, dump
from megaslm.errors import ConfigError
from megaslm.training.changes import FREE, IF_ALLOWED, NEVER, _is_one_of, check_allowed_keys, check_changes, may_change
from megaslm.training.run_folder import RunFolder
from tests.messages import Says
from tests.toy import run_config

STREAMS = {"web": {"dataset": "web", "weight": 1.0}}


def slm(**sections: dict[str, Any]) -> RunConfig:
    return run_config(
        Path("run"), Path("tokens"), **{**sections, "train": {"objective": "slm", **sections.get("train", {})}}
    )


RUN = slm()


def test_every_setting_is_in_one_class() -> None:
    """A new setting is put into a list of `megaslm/training/changes.py`, by what it changes."""
    streams = run_config(Path("run"), Path("tokens"), data={"train": None, "streams": STREAMS})
    from_run = run_config(Path("run"), Path("tokens"), model={"from_scratch": None, "from_run": "other"})
    held_out = {"sets": {"held": {"dataset": "tokens"}}}
    validated = run_config(
        Path("run"), Path("tokens"), validation=held_out, deepspeed_extra={"comms_logger": {"enabled": True}}
    )
    keys = {dotted_key(path) for run in (RUN, streams, from_run, validated) for path, _ in settings_of(run)}
    assert len(keys) > 90
    extra = {key for key in keys if key.startswith("deepspeed_extra")}
    for key in keys - extra:
        assert [_is_one_of(key, kinds) for kinds in (NEVER, IF_ALLOWED, FREE)].count(True) == 1, key
    assert {may_change(key, RUN) for key in extra} == {"if allowed"}


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("train", "total_tokens", 10_000),
        ("train", "lr", 1e-3),
        ("train", "schedule", "constant"),
        ("train", "warmup_tokens", 128),
        ("train", "decay_tokens", 128),
        ("train", "min_lr_ratio", 0.0),
        ("train", "weight_decay", 0.0),
        ("train", "beta1", 0.5),
        ("train", "beta2", 0.5),
        ("train", "eps", 1e-6),
        ("train", "max_grad_norm", 0.0),
    ],
)
def test_what_shapes_the_optimisation_must_be_allowed(section: str, setting: str, value: object) -> None:
    key, now = f"{section}.{setting}", slm(**{section: {setting: value}})
    old = getattr(RUN.train, setting)
    with pytest.raises(ConfigError) as refused:
        check_changes(RUN, now, (), has_learned=True)
    assert f"{key}: {old} → {value}" in str(refused.value)
    assert f"--allow-changed {key}" in str(refused.value)
    assert check_changes(RUN, now, (key,), has_learned=True) == [f"{key}: {old} → {value}"]
    assert check_changes(RUN, now, (), has_learned=False) == [f"{key}: {old} → {value}"]


def test_all_changes_that_must_be_allowed_are_named_at_once(says: Says) -> None:
    now = slm(train={"lr": 1e-3, "total_tokens": 1536}, deepspeed_extra={"comms_logger": {"enabled": True}})
    with pytest.raises(ConfigError) as refused:
        check_changes(RUN, now, ("train.eps",), has_learned=True, data_changes=["data.train has become longer"])
    says(refused, "train.lr: 0.01 → 0.001", "train.total_tokens: 768 → 1536", "--allow-changed deepspeed_extra")
    with pytest.raises(ConfigError) as refused:
        check_changes(RUN, now, ("train.lr", "deepspeed_extra"), has_learned=True)
    says(refused, "train.total_tokens: 768 → 1536", "--allow-changed train.lr")
    assert len(check_changes(RUN, now, ("train.lr", "deepspeed_extra", "train.total_tokens"), has_learned=True)) == 4


@pytest.mark.parametrize("has_learned", [True, False])
def test_what_makes_the_run_never_changes(has_learned: bool, says: Says) -> None:
    now = slm(slm={"keep_ratio": "0.5"}, data={"shuffle_seed": 1}, train={"lr": 1e-3})
    with pytest.raises(ConfigError) as refused:
        check_changes(RUN, now, ("slm.keep_ratio", "train.lr"), has_learned=has_learned)
    says(refused, "slm.keep_ratio: 0.6 → 0.5", "data.shuffle_seed: 0 → 1")


def test_what_says_how_a_run_is_carried_out_changes_freely() -> None:
    now = slm(zero={"stage": 1}, log={"every_steps": 7}, train={"micro_batch_rows": 2}, guard={"on_spike": "off"})
    assert check_changes(RUN, now, (), has_learned=True) == [
        "train.micro_batch_rows: 8 → 2",
        "zero.stage: 3 → 1",
        "guard.on_spike: warn → off",
        "log.every_steps: 2 → 7",
    ]


def test_a_micro_batch_within_which_targets_are_ranked_must_be_allowed() -> None:
    before, now = (slm(slm={"scope": "microbatch"}, train={"micro_batch_rows": rows}) for rows in (8, 4))
    with pytest.raises(ConfigError, match=r"--allow-changed train\.micro_batch_rows"):
        check_changes(before, now, (), has_learned=True)
    check_allowed_keys(["train.micro_batch_rows"], now)


@pytest.mark.parametrize("key", ["train.lrr", "seed", "log.every_steps", "deepspeed_extra.comms_logger", ""])
def test_only_settings_that_need_it_can_be_allowed(key: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        check_allowed_keys(["train.lr", key], RUN)
    says(refused, f"--allow-changed {key}", "train.total_tokens")


@pytest.mark.parametrize(("old", "new"), [("false", "none"), ("true", "full")])
def test_a_run_of_an_earlier_build_is_resumed(tmp_path: Path, old: str, new: str) -> None:
    """Its config.yaml has `gradient_checkpointing`, and neither `recompute` nor `compile`."""
    folder = RunFolder(tmp_path)
    text = dump(RUN).replace("  compile: auto\n", "").replace("recompute: none", f"gradient_checkpointing: {old}")
    (tmp_path / "config.yaml").write_text(text)
    assert "gradient_checkpointing" in text
    before = folder.config()
    assert before.model.recompute == new
    assert len(check_changes(before, RUN, (), has_learned=True)) == (new != "none")
