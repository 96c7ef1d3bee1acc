"""The output of `megaslm inspect` for a run folder."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megaslm.inspect.run_facts import RunFacts
from megaslm.observe.console import loss_of
from megaslm.observe.display import counted, duration, rounded, size

_SHOWN_CHECKPOINTS = 10


def show_run(console: Console, facts: RunFacts) -> None:
    """Prints all facts of a run."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _lines(facts):
        grid.add_row(name, Text(value))
    title = Text.assemble((Path(facts.run).name, "not dim bold"), f" · run · {facts.run}")
    console.print(Panel(grid, title=title, title_align="left", border_style="dim"))


def _lines(facts: RunFacts) -> Iterator[tuple[str, str]]:
    yield "objective", facts.objective
    yield "model", facts.model
    yield "data", "; ".join(facts.datasets)
    step = facts.last_step
    if step is None:
        yield "step", f"none reported yet, of {facts.total_steps:,}"
    else:
        state = "finished" if step.step >= facts.total_steps else f"{step.step / facts.total_steps:.0%}"
        yield (
            "step",
            f"{step.step:,} of {facts.total_steps:,} · {step.tokens:,} of {facts.total_tokens:,} tokens · {state}",
        )
        yield (
            "last report",
            f"{loss_of(step)} · lr {step.learning_rate:.2e} · {rounded(step.tokens_per_second)} tokens/s",
        )
    for found in facts.validations:
        yield (
            f"held out {found.place}",
            f"loss {found.loss:.4f} · perplexity {found.perplexity:,.2f} · step {found.step:,}",
        )
    if facts.seconds is not None:
        ranks = "" if facts.ranks is None else f" on {counted(facts.ranks, 'rank')}"
        gpu_hours = f" · {rounded(facts.gpu_hours, 2)} GPU-hours" if facts.gpu_hours else ""
        yield "trained for", f"{duration(facts.seconds)}{ranks}{gpu_hours}"
    if not facts.checkpoints:
        yield "checkpoints", "none yet"
    elif len(facts.checkpoints) > _SHOWN_CHECKPOINTS:
        yield "checkpoints", f"{len(facts.checkpoints):,}, of which the newest:"
    for number, checkpoint in enumerate(facts.checkpoints[-_SHOWN_CHECKPOINTS:]):
        is_first = number == 0 and len(facts.checkpoints) <= _SHOWN_CHECKPOINTS
        yield "checkpoints" if is_first else "", f"{checkpoint.folder} · {size(checkpoint.bytes)}"
    yield "curves", f"tensorboard --logdir {facts.run}"
    if facts.checkpoints:
        yield "its model", f"megaslm export {facts.run} OUTPUT"
