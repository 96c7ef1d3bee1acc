"""The parts of a run, made from its configuration, that stay the same while it trains, rolls back and trains again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from megaslm.config.load import settings_of
from megaslm.config.plan import BatchPlan
from megaslm.config.run_files import how_to_start_again
from megaslm.config.schema import RunConfig
from megaslm.config.source import dotted_key, dump
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World
from megaslm.engine.stop_signal import StopSignal
from megaslm.engine.zero import ZeroEngine
from megaslm.observe.run_description import RunDescription, Scalar
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.spans import SpanRule
from megaslm.slm.threshold import SelectionState
from megaslm.slm.weights import WeightedObjective
from megaslm.stream.loader import TrainingStream
from megaslm.training.changes import may_change
from megaslm.training.exact_way import ExactWay
from megaslm.training.filter_watch import FilterWatch
from megaslm.training.memory_check import MemoryCheck
from megaslm.training.phases import Phase, untimed
from megaslm.training.probe import Probe
from megaslm.training.run_folder import RunFolder
from megaslm.training.selection_rule import rule_of, sorts_by_entropy, weight_rule
from megaslm.training.step import TrainStep
from megaslm.training.task_validation import TaskValidation
from megaslm.training.training_data import TrainingData
from megaslm.training.validation import Validation


def objective_of(config: RunConfig, domains: Sequence[str], selection: SelectionState) -> Objective:
    """The objective over these domains, with the selection state of an earlier attempt."""
    if config.train.objective != "slm":
        return CausalObjective()
    selective, weights = SelectiveObjective(rule_of(config, domains), selection), weight_rule(config.slm)
    return selective if weights is None else WeightedObjective(selective, weights)


def description_of(config: RunConfig) -> RunDescription:
    """What viewers are told of a run. Its settings are those that shape what is learned and have a plain value."""
    shaping = {
        dotted_key(path): float(value) if isinstance(value, Decimal) else value
        for path, value in settings_of(config)
        if may_change(dotted_key(path), config) != "free"
    }
    return RunDescription(dump(config), {key: value for key, value in shaping.items() if isinstance(value, Scalar)})


@dataclass(frozen=True)
class TrainingRun:
    """A run on its ranks, ready to train."""

    config: RunConfig
    plan: BatchPlan
    data: TrainingData
    stream: TrainingStream
    validation: Validation
    tasks: TaskValidation
    probe: Probe
    folder: RunFolder
    engine: ZeroEngine
    exact_way: ExactWay
    memory: MemoryCheck
    world: World
    cpu_group: CpuGroup
    stop: StopSignal
    is_smoke_test: bool = False
    """Whether nothing resumes from it."""

    def how_to_start_again(self) -> str:
        """The advice for this run, or smoke test, where it stops."""
        return "start the smoke test again" if self.is_smoke_test else how_to_start_again(self.folder.path)

    def train_step(
        self, objective: Objective, *, backward_cosine: float | None = None, ends: Callable[[Phase], None] = untimed
    ) -> TrainStep:
        """The optimiser step under an objective, which calls `ends` at the end of each phase.

        `backward_cosine`: the last one of an earlier attempt, see `FilterWatch`.
        """
        mixture = self.data.mixture
        return TrainStep(
            self.engine,
            objective,
            self.world,
            eos_id=self.data.eos_id,
            domain_count=len(mixture.domains),
            may_repeat_rows=mixture.may_repeat_rows,
            row_name=mixture.row_name,
            keeps_graphs=self.exact_way.keeps_graphs,
            by_entropy=sorts_by_entropy(self.config),
            spans=self._spans(),
            filter_watch=self._filter_watch(backward_cosine),
            ends=ends,
        )

    def _filter_watch(self, cosine: float | None) -> FilterWatch | None:
        if not self.config.filters_backward:
            return None
        backward = self.engine.model.backward_filter
        return FilterWatch(backward, least_cosine=self.config.slm.least_cosine, cosine=cosine)

    def _spans(self) -> SpanRule | None:
        slm = self.config.slm
        if self.config.train.objective != "slm":
            return None
        return SpanRule.of(slm.granularity, slm.span_reach, self.data.eos_id)
