"""A chain of runs: tokens → reference → scored → SLM."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.schema import RunConfig
from tests.forked_cli import run_megaslm
from tests.toy import make_dataset, run_config, write_config


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


def make_chain(root: Path) -> Chain:
    """A reference trained by one process, scoring and SLM by two ranks."""
    chain = Chain(root)
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
