"""What fault tests share: scored data, the run that nothing happens to, and the file for figures."""

import pytest
import torch

from megaslm.config.schema import RunConfig
from tests.faults.figures import Figures, figures_file
from tests.faults.runs import Material, run_ranks, weights_sha256
from tests.scoring import make_reference, run_job, task_of
from tests.toy import make_dataset


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Ranks have one thread each; more of them here would only contend with theirs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def figures() -> Figures:
    return Figures(figures_file())


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A dataset of two domains and its scores by a random reference, in forked ranks: seconds."""
    folder = tmp_path_factory.mktemp("material")
    material = Material(folder / "tokens", folder / "scored")
    make_dataset(material.tokens, {("train", "a"): [20, 15], ("train", "b"): [30], ("heldout", "a"): [5]})
    make_reference(folder / "reference")
    run_job(1, task_of(folder / "reference", material.tokens, material.scored))
    return material


@pytest.fixture(scope="session")
def undisturbed_run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Eight steps on two ranks to which nothing happened."""
    config = material.config(tmp_path_factory.mktemp("undisturbed") / "run")
    assert run_ranks(config) == [0, 0]
    return config


@pytest.fixture(scope="session")
def undisturbed(undisturbed_run: RunConfig) -> str:
    """The hash of the weights that it came to."""
    return weights_sha256(undisturbed_run)
