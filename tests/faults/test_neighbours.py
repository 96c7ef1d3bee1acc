"""Two runs on one host: one crashes, the other comes to its weights, and neither leaves anything."""

from pathlib import Path

import pytest

from tests.faults.elastic import ElasticRun
from tests.faults.figures import Figures
from tests.faults.host import listening_ports, ownerless_shared_memory, processes_of, taken_ports, wait_until_gone
from tests.faults.runs import Material, weights_sha256
from tests.forks import wait_until


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_crash_does_not_touch_the_neighbour(
    material: Material, undisturbed: str, figures: Figures, tmp_path: Path
) -> None:
    before = ownerless_shared_memory()
    crashing_config, healthy_config = material.config(tmp_path / "crash"), material.config(tmp_path / "healthy")
    with (
        ElasticRun(crashing_config, tmp_path / "a", faults="kill@rank1:step6") as crashing,
        ElasticRun(healthy_config, tmp_path / "b") as healthy,
    ):
        wait_until(lambda: bool(crashing.growths or healthy.growths))
        ports = listening_ports(processes_of(crashing.mark) | processes_of(healthy.mark))
        assert ports
        assert crashing.wait(seconds=240) == 1
        assert healthy.wait(seconds=240) == 0, healthy.output
        wait_until_gone(lambda: processes_of(crashing.mark) | processes_of(healthy.mark))
    assert weights_sha256(healthy_config) == undisturbed
    assert not ports & taken_ports()
    wait_until_gone(lambda: ownerless_shared_memory() - before)
    figures.record("neighbours", processes_left=0, shared_memory_objects_left=0, ports_left=0, ports_used=len(ports))
