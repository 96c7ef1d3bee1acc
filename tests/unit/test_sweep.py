"""The runs of a sweep: what differs between them, where they lie, and which sweeps are refused."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError
from megaslm.sweep import plan_sweep
from tests.messages import Says
from tests.toy import run_config, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))


def test_runs_differ_in_one_setting_and_their_folder(config: Path, tmp_path: Path) -> None:
    sweep = plan_sweep(config, "slm.keep_ratio=0.4, 0.6,1", ["train.lr=0.5"])
    assert [run.value for run in sweep.runs] == ["0.4", "0.6", "1"]
    assert [run.folder for run in sweep.runs] == [
        tmp_path / "run.sweep" / name for name in ("keep_ratio-0.4", "keep_ratio-0.6", "keep_ratio-1")
    ]
    runs = [load(RunConfig, config, run.overrides).value for run in sweep.runs]
    assert [run.run_dir for run in runs] == [str(run.folder) for run in sweep.runs]
    assert {run.train.lr for run in runs} == {0.5}
    same = [run.model_dump(exclude={"run_dir": True, "slm": {"keep_ratio"}}) for run in runs]
    assert same[0] == same[1] == same[2]
    assert [float(run.slm.keep_ratio) for run in runs] == [0.4, 0.6, 1.0]


def test_a_value_that_is_no_name_of_a_folder_gets_one(config: Path, tmp_path: Path) -> None:
    sweep = plan_sweep(config, f"data.train={tmp_path}/a,{tmp_path}/b", [])
    assert [run.folder.parent for run in sweep.runs] == [tmp_path / "run.sweep"] * 2


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("slm.keep_ratio", "slm.keep_ratio"),
        ("slm.keep_ratio=0.4", "slm.keep_ratio=0.4"),
        ("=0.4,0.5", "=0.4,0.5"),
        ("slm.keep_ratio=0.4,,0.5", "0.4,,0.5"),
        ("slm.keep_ratio=0.4,1.4", "1.4"),
        ("slm.keep_rato=0.4,0.5", "slm.keep_rato"),
        ("train.lr=1e-3,0.001", "0.001"),
        ("data.train=a/b,a_b", "a_b"),
        ("run_dir=a,b", "run_dir"),
    ],
)
def test_what_is_no_sweep_is_refused(config: Path, setting: str, named: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_sweep(config, setting, [])
    says(refused, named)


@pytest.mark.parametrize("values", ["0.4", "0.5,0.50"])
def test_a_refused_sweep_of_ratios_is_named_as_it_was_asked_for(config: Path, values: str, says: Says) -> None:
    slm = ["train.objective=slm"]
    with pytest.raises(ConfigError) as refused:
        plan_sweep(config, f"slm.keep_ratio={values}", slm, option="--keep-ratio")
    says(refused, f"--keep-ratio {values}: ")
