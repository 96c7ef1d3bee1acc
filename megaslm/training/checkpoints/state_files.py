"""Weights and moments in safetensors files: two files per writing rank."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megaslm.engine.training_state import MOMENTS, Fragment, Quantity, TrainingState
from megaslm.errors import CheckpointError
from megaslm.training.checkpoints.file_list import WEIGHTS
from megaslm.training.checkpoints.layout import Layout, read_layout


class HostCopy:
    """A copy of this rank's training state on the host. A thread writes it while training continues."""

    def __init__(self, state: TrainingState, mine: set[str]) -> None:
        """Holds buffers for the parameters `mine`, which every `take` fills again."""
        self._state = state
        self._fragments = [fragment for fragment in state.fragments if fragment.name in mine]
        self._room: dict[tuple[Quantity, int], Tensor] = {}

    def take(self) -> None:
        """Copies the current state. Returns when the copy is complete."""
        self._state.ensure_moments()
        for flat in {fragment.flat for fragment in self._fragments}:
            for quantity in ("weight", *MOMENTS):
                self._copy(quantity, flat)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _copy(self, quantity: Quantity, flat: int) -> None:
        current = self._state.quantity(quantity, flat)
        if (quantity, flat) not in self._room:
            self._room[quantity, flat] = torch.empty(
                current.shape, dtype=current.dtype, pin_memory=torch.cuda.is_available()
            )
        self._room[quantity, flat].copy_(current, non_blocking=True)

    def write(self, folder: Path, rank: int) -> list[Path]:
        """Writes the copy. Returns the files."""
        weights, optimizer = weights_file(folder, rank), _optimizer_file(folder, rank)
        _save({fragment.name: self._stretch("weight", fragment) for fragment in self._fragments}, weights)
        moments = {
            _key(moment, fragment.name): self._stretch(moment, fragment)
            for moment in MOMENTS
            for fragment in self._fragments
        }
        _save(moments, optimizer)
        return [weights, optimizer]

    def _stretch(self, quantity: Quantity, fragment: Fragment) -> Tensor:
        return self._room[quantity, fragment.flat].narrow(0, fragment.offset, fragment.count)


class StateFiles:
    """The files of a checkpoint, read stretch by stretch."""

    def __init__(self, checkpoint: Path, layout: Layout) -> None:
        """Opens each file when it is first needed."""
        self._checkpoint = checkpoint
        self._layout = layout
        self._open: dict[Path, Any] = {}

    def read(self, quantity: Quantity, name: str, start: int, count: int) -> Tensor:
        """Elements `start` to `start + count` of a flattened parameter, 1-D float32 on the host.

        Elements of one file are not copied: they are read from it when used.
        """
        parts = list(self._parts(quantity, name, start, start + count))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _parts(self, quantity: Quantity, name: str, start: int, end: int) -> Iterator[Tensor]:
        for stretch in self._layout.parameters[name].stretches:
            first, last = max(start, stretch.start), min(end, stretch.start + stretch.size)
            if first < last:
                stored = self._file(quantity, stretch.rank).get_slice(_key(quantity, name))
                yield stored[first - stretch.start : last - stretch.start]

    def _file(self, quantity: Quantity, rank: int) -> Any:
        of_rank = weights_file if quantity == "weight" else _optimizer_file
        path = of_rank(self._checkpoint, rank)
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]


class StoredWeights(Mapping[str, Tensor]):
    """The whole model's weights of a checkpoint, float32 on the host, each read on access."""

    def __init__(self, checkpoint: Path) -> None:
        """Reads the layout."""
        self._layout = read_layout(checkpoint)
        self._files = StateFiles(checkpoint, self._layout)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._layout.parameters[name].shape
        return self._files.read("weight", name, 0, torch.Size(shape).numel()).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.parameters)

    def __len__(self) -> int:
        return len(self._layout.parameters)


def load_state(checkpoint: Path, state: TrainingState) -> None:
    """Loads weights and moments of a checkpoint into an optimiser of any ZeRO stage and number of ranks.

    Called on all ranks. Each rank reads its own fragments.

    Raises CheckpointError where the checkpoint is of another model.
    """
    layout = read_layout(checkpoint)
    files = StateFiles(checkpoint, layout)
    state.make_moments(layout.adam_steps)
    for fragment in state.fragments:
        stored = layout.parameters.get(fragment.name)
        if stored is None or stored.shape != fragment.shape:
            found = "is not in it" if stored is None else f"has the shape {stored.shape} in it"
            raise CheckpointError(
                f"{checkpoint}: {fragment.name} of shape {fragment.shape} {found}; it is of another model"
            )
        for quantity in ("weight", *MOMENTS):
            whole = state.quantity(quantity, fragment.flat)
            whole.narrow(0, fragment.offset, fragment.count).copy_(
                files.read(quantity, fragment.name, fragment.start, fragment.count)
            )
    state.publish_weights()


def differing_parameters(checkpoint: Path, state: TrainingState) -> list[str]:
    """The parameters whose weights or moments a checkpoint holds other than this rank, bit for bit.

    Raises CheckpointError where the checkpoint was made after another number of updates.
    """
    layout = read_layout(checkpoint)
    if layout.adam_steps != state.adam_steps():
        raise CheckpointError(f"{checkpoint}: was made after {layout.adam_steps} updates, not {state.adam_steps()}")
    files = StateFiles(checkpoint, layout)
    return [
        fragment.name
        for fragment in state.fragments
        if not all(
            torch.equal(
                files.read(quantity, fragment.name, fragment.start, fragment.count),
                state.quantity(quantity, fragment.flat).narrow(0, fragment.offset, fragment.count).cpu(),
            )
            for quantity in ("weight", *MOMENTS)
        )
    ]


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # safetensors makes files that only their owner may read, whatever the umask says.
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def weights_file(folder: Path, rank: int) -> Path:
    """The file of a rank's weights."""
    return folder / f"{WEIGHTS}{rank:05d}.safetensors"


def _optimizer_file(folder: Path, rank: int) -> Path:
    return folder / f"optimizer-{rank:05d}.safetensors"


def _key(quantity: Quantity, name: str) -> str:
    return name if quantity == "weight" else f"{quantity}.{name}"
