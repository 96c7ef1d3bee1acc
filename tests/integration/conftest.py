"""What integration tests share: a corpus and its dataset, and a chain of runs: tokens → reference → scored → SLM."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megaslm.config.dump import dump
from megaslm.config.schema import RunConfig
from megaslm.data.preparing.prepare import prepare
from tests.corpus import recipe_of, write_corpus
from tests.forked_cli import run_megaslm
from tests.toy import make_dataset, run_config


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Ranks that tests start have one thread each; more of them here would only contend with theirs."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Chain:
    """The folders of the chain."""

    root: Path

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def reference_run(self) -> Path:
        return self.root / "reference-run"

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    @property
    def scored(self) -> Path:
        return self.root / "scored"

    @property
    def slm_run(self) -> Path:
        return self.root / "slm"

    def slm_config(self, run_dir: Path) -> RunConfig:
        """Eight steps with a checkpoint after four, at a constant rate."""
        return run_config(
            run_dir,
            self.scored,
            model={"from_scratch": None, "from_run": str(self.reference_run)},
            train={
                "objective": "slm",
                "schedule": "constant",
                "total_tokens": 8 * 8 * 16,
                "micro_batch_rows": 2,
            },
            slm={"reference": str(self.reference)},
            checkpoint={"every_tokens": 4 * 8 * 16},
            validation={"sets": {"held": {"dataset": str(self.tokens)}}},
        )


def write_config(path: Path, config: RunConfig) -> Path:
    """The configuration as a file."""
    path.write_text(dump(config))
    return path


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Made once: a reference trained by one process, scoring and SLM by two ranks."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    make_dataset(chain.tokens, {("train", "a"): [20, 15], ("train", "b"): [30], ("heldout", "a"): [5]})
    reference = run_config(
        chain.reference_run,
        chain.tokens,
        validation={"sets": {"held": {"dataset": str(chain.tokens)}}},
    )
    run_megaslm("train", write_config(chain.root / "reference.yaml", reference))
    run_megaslm("export", chain.reference_run, chain.reference)
    run_megaslm("score", "--reference", chain.reference, chain.tokens, chain.scored, world_size=2)
    run_megaslm("train", write_config(chain.root / "slm.yaml", chain.slm_config(chain.slm_run)), world_size=2)
    return chain


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run of one process makes of the corpus."""
    output = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(recipe_of(corpus), output, workers=1)
    return output
