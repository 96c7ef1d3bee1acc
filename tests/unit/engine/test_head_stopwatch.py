"""The head's own work is timed, and nothing that waits for other ranks."""

import math
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from megaslm.engine.distributed import World
from megaslm.engine.head_stopwatch import HeadStopwatch
from megaslm.engine.pace import PaceMeter
from megaslm.model.selective_head import HeadSettings, SelectiveHead
from megaslm.slm.choice import Choice, Every, Forecast, Known, Selected

ROWS, WIDTH, VOCAB_SIZE = 32, 16, 64
CHOOSING_SECONDS = 0.2


def work_for(seconds: float) -> None:
    """Keeps a processor busy."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@dataclass
class Choosing:
    """A choice by loss that takes its time, and the larger half."""

    mask: Tensor
    unrankable: Tensor
    forecast: Forecast | None = None

    def __call__(self, losses: Tensor) -> Selected:
        work_for(CHOOSING_SECONDS)
        self.mask = losses > losses.median()
        return Selected(self.mask, self.unrankable, torch.tensor(0))


def choosing() -> Choosing:
    nothing = torch.zeros(ROWS, dtype=torch.bool)
    return Choosing(nothing, nothing)


def known(rows: int, rest: int) -> Known:
    places = torch.arange(ROWS)
    return Known(places < rows, places[:rows], places[rows : rows + rest])


CHOICES = {
    "none": None,
    "every": Every(torch.ones(ROWS, dtype=torch.bool)),
    "known": known(20, 12),
    "by loss": choosing(),
}


@pytest.fixture
def head() -> SelectiveHead:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
            self.config = LlamaConfig()

    torch.manual_seed(0)
    return SelectiveHead.taking_over(Holder(), HeadSettings())


def step(head: SelectiveHead, choice: Choice | None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    found = head(hidden, torch.randint(VOCAB_SIZE, (ROWS,), generator=generator), choice)
    return found if choice is None else found[1]


def head_seconds(head: SelectiveHead, choice: Choice | None, extra_seconds: float = 0.0) -> float:
    """A unit of work in the second of two steps; in the first, torch looks around."""
    stopwatch = HeadStopwatch(head, torch.device("cpu"))
    if extra_seconds:
        head.register_forward_pre_hook(lambda *_: work_for(extra_seconds))
    step(head, choice)
    stopwatch.end_step()
    stopwatch.read()
    step(head, choice)
    stopwatch.end_step()
    return stopwatch.read()


@pytest.mark.parametrize("choice", CHOICES)
def test_losses_are_what_they_are_without_it(head: SelectiveHead, choice: str) -> None:
    before = step(head, CHOICES[choice])
    HeadStopwatch(head, torch.device("cpu"))
    assert torch.equal(step(head, CHOICES[choice]), before)


def test_a_closed_one_leaves_the_head_as_it_was(head: SelectiveHead) -> None:
    """A run that goes back begins another one on the same head."""
    hooks = len(head._forward_pre_hooks), len(head._forward_hooks)
    meter = PaceMeter(head, World(0, 1, torch.device("cpu")))
    assert (len(head._forward_pre_hooks), len(head._forward_hooks)) != hooks
    meter.close()
    assert (len(head._forward_pre_hooks), len(head._forward_hooks)) == hooks


def test_what_a_choice_takes_does_not_count(head: SelectiveHead) -> None:
    assert 0.0 < head_seconds(head, choosing()) * ROWS < CHOOSING_SECONDS / 2


@pytest.mark.parametrize(
    ("choice", "work"), [("none", ROWS), ("every", 3 * ROWS), ("known", 3 * 20 + 12), ("by loss", ROWS)]
)
def test_the_time_is_that_of_a_unit_of_work(head: SelectiveHead, choice: str, work: int) -> None:
    seconds = head_seconds(head, CHOICES[choice], extra_seconds=0.1)
    assert 0.1 <= seconds * work < 0.15


def test_the_quickest_step_counts(head: SelectiveHead) -> None:
    stopwatch = HeadStopwatch(head, torch.device("cpu"))
    pauses = [0.1, 0.0, 0.1]
    head.register_forward_pre_hook(lambda *_: work_for(pauses.pop()))
    for _ in range(3):
        step(head, CHOICES["every"])
        stopwatch.end_step()
    assert stopwatch.read() * 3 * ROWS < 0.05
    assert math.isnan(stopwatch.read())


def test_validation_and_steps_without_work_do_not_count(head: SelectiveHead) -> None:
    stopwatch = HeadStopwatch(head, torch.device("cpu"))
    head.eval()
    step(head, None)
    stopwatch.end_step()
    head.train()
    step(head, known(0, 0))
    stopwatch.end_step()
    assert math.isnan(stopwatch.read())
