"""The memory that a run was predicted to need, and what its first steps took: one line, and memory.json."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import torch

# The first pass imports it. Imported here it counts as part of the process, not of the step.
import torch._dynamo

from megaslm.config.plan import BatchPlan
from megaslm.config.run_files import MEMORY
from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import World, gather_objects
from megaslm.engine.zero import ZeroEngine
from megaslm.files import write_file
from megaslm.health.held_memory import HostMemory, PeakWatch
from megaslm.model.load import choose_precision
from megaslm.model.memory import RankMemory, rank_memory
from megaslm.observe.display import size


@dataclass
class MemoryCheck:
    """Compares once, after the first report of a run."""

    process_bytes: int
    """What this rank holds before the first step beside its weights, on a CPU."""
    is_done: bool = False
    _watch: PeakWatch | None = None

    @classmethod
    def before_the_first_step(cls, engine: ZeroEngine) -> "MemoryCheck":
        """Reads what the process holds now."""
        return cls(HostMemory.now().held - engine.weight_bytes())

    def begin(self, device: torch.device) -> None:
        """From here on the peak counts, on a CPU. PyTorch counts that of a GPU by itself."""
        if device.type == "cpu" and not self.is_done:
            self._watch = PeakWatch()

    def end(self) -> None:
        """Ends the watch over the peak, if there is one."""
        if self._watch is not None:
            self._watch.stop()

    def compare(
        self,
        config: RunConfig,
        plan: BatchPlan,
        engine: ZeroEngine,
        world: World,
        *,
        keeps_graphs: bool,
        say: Callable[[str], None],
    ) -> None:
        """Tells the prediction and the most that a rank took so far. Called on all ranks; the first time counts.

        The first rank traces a step meanwhile, which takes about a second: before the first step it would delay the
        start, and a thread beside DeepSpeed's start could meet its hooks.
        """
        if self.is_done:
            return
        self.is_done = True
        measured = reduce(HostMemory.most, gather_objects(self._peak(world.device)))
        if not world.is_first:
            return
        try:
            predicted = rank_memory(
                config,
                plan,
                engine.model.lm.config,
                choose_precision(config.model.precision, world.device),
                on_gpu=world.device.type == "cuda",
                process_bytes=self.process_bytes,
                keeps_graphs=keeps_graphs,
            )
            say(_line(predicted.peak_bytes, measured))
            _write(Path(config.run_dir), predicted, measured)
        except Exception as error:  # Whatever a release of torch, or a full disk, makes of it: it must not end a run.
            say(
                f"warning: memory: measured {size(measured.held)} per rank, but {MEMORY} cannot be made "
                f"({type(error).__name__}: {error}); training continues"
            )

    def _peak(self, device: torch.device) -> HostMemory:
        """The most that this rank held at once: what PyTorch allocated on its GPU or, without one, the process."""
        if self._watch is not None:
            return self._watch.stop()
        allocated_bytes = torch.cuda.max_memory_allocated(device)
        return HostMemory(allocated_bytes, allocated_bytes)


def _line(predicted_bytes: int, measured: HostMemory) -> str:
    predicted, held, ratio = size(predicted_bytes), size(measured.held), measured.held / predicted_bytes
    line = f"memory: predicted {predicted} per rank, measured {held} ({ratio:.0%})"
    if measured.resident > measured.held:
        line += f", {size(measured.resident)} with freed memory that glibc keeps"
    return line


def _write(run: Path, predicted: RankMemory, measured: HostMemory) -> None:
    facts = {
        "predicted_bytes": predicted.peak_bytes,
        "measured_bytes": measured.held,
        "resident_bytes": measured.resident,
        "moment": predicted.peak_moment,
        "moments": predicted.moments,
        "parts": asdict(predicted),
    }
    write_file(run / MEMORY, json.dumps(facts, indent=1) + "\n")
