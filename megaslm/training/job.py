"""What stays the same while a run goes on, goes back, and goes on again."""

from dataclasses import dataclass

from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.data.loading.loader import TrainingStream
from megaslm.engine.agreement import Agreement
from megaslm.engine.distributed import World
from megaslm.engine.stop_signal import StopSignal
from megaslm.engine.zero import ZeroEngine
from megaslm.slm.objective import Objective
from megaslm.training.run_folder import RunFolder
from megaslm.training.step import TrainStep
from megaslm.training.training_data import TrainingData
from megaslm.training.validation import Validation


@dataclass(frozen=True)
class Job:
    """One run on the ranks that it has, ready to train."""

    config: RunConfig
    plan: BatchPlan
    data: TrainingData
    stream: TrainingStream
    validation: Validation
    run: RunFolder
    engine: ZeroEngine
    world: World
    agreement: Agreement
    stop: StopSignal

    def train_step(self, objective: Objective) -> TrainStep:
        """The optimiser step under an objective."""
        mixture = self.data.mixture
        return TrainStep(
            self.engine,
            objective,
            self.world,
            eos_id=self.data.eos_id,
            domain_count=len(mixture.domains),
            may_repeat_rows=mixture.may_repeat_rows,
            row_name=mixture.row_name,
        )
