"""The memory that a run was predicted to need, and what its first steps took: one line, and memory.json."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from megaslm.health.host_facts import resident_bytes
from megaslm.model.load import choose_precision
from megaslm.model.memory import RankMemory, rank_memory
from megaslm.observe.display import size


@dataclass
class MemoryCheck:
    """Compares once, after the first report of a run."""

    process_bytes: int
    """What this rank holds before the first step beside its weights, on a CPU."""
    is_done: bool = False

    @classmethod
    def before_the_first_step(cls, engine: ZeroEngine) -> "MemoryCheck":
        """Reads what the process holds now."""
        return cls(resident_bytes("VmRSS") - engine.weight_bytes())

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
        measured_bytes = max(gather_objects(peak_bytes(world.device)))
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
            say(_line(predicted.peak_bytes, measured_bytes))
            _write(Path(config.run_dir), predicted, measured_bytes)
        except Exception as error:  # Whatever a release of torch, or a full disk, makes of it: it must not end a run.
            say(
                f"warning: memory: measured {size(measured_bytes)} per rank, but {MEMORY} cannot be made "
                f"({type(error).__name__}: {error}); training continues"
            )


def _line(predicted_bytes: int, measured_bytes: int) -> str:
    ratio = measured_bytes / predicted_bytes
    return f"memory: predicted {size(predicted_bytes)} per rank, measured {size(measured_bytes)} ({ratio:.0%})"


def _write(run: Path, predicted: RankMemory, measured_bytes: int) -> None:
    facts = {
        "predicted_bytes": predicted.peak_bytes,
        "measured_bytes": measured_bytes,
        "moment": predicted.peak_moment,
        "moments": predicted.moments,
        "parts": asdict(predicted),
    }
    write_file(run / MEMORY, json.dumps(facts, indent=1) + "\n")


def peak_bytes(device: torch.device) -> int:
    """The most that this rank held at once: what PyTorch allocated on its GPU or, without one, what was resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes("VmHWM")
