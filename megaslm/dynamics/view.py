"""The output of `megaslm dynamics`: tables of classes, shares over time and examples."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megaslm.dynamics.examples import Example
from megaslm.dynamics.lines import CLASSES
from megaslm.dynamics.summary import DynamicsSummary, StepwiseSummary
from megaslm.observe.display import counted, visible_on_one_line

_MOST_TIMES = 12
_CONTEXT_CHARACTERS = 28


def show_dynamics(console: Console, found: DynamicsSummary) -> None:
    """Prints the token dynamics of a run."""
    console.print(
        f"{counted(found.tokens, 'probe token')} at {counted(len(found.steps), 'step')}, {found.steps[0]:,} to "
        f"{found.steps[-1]:,} · mean loss {found.mean_losses[0]:.4f} → {found.mean_losses[-1]:.4f} nats"
    )
    if found.non_finite_steps:
        steps = ", ".join(map(str, found.non_finite_steps))
        console.print(f"left out: steps without a finite loss: {steps}")
    if found.non_finite_tokens:
        console.print(f"left out: {counted(found.non_finite_tokens, 'token')} with a loss that is NaN or infinite")
    console.print(_classes(found))
    if len(found.domains) > 1:
        console.print(_domains(found))
    console.print(_over_time(found))
    if found.stepwise is not None:
        console.print(_stepwise(found.stepwise, len(found.steps)))
    console.print(_examples(found.examples))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _classes(found: DynamicsSummary) -> Table:
    columns = ["class", "tokens", "share", "first loss", "last loss", "change", "fluctuation"]
    has_excess = any(one.last_excess is not None for one in found.classes)
    has_kept = any(one.kept_share is not None for one in found.classes)
    table = _table(
        "tokens by the line through their losses, in nats",
        *columns,
        *(["last excess"] if has_excess else []),
        *(["kept"] if has_kept else []),
    )
    for one in found.classes:
        table.add_row(
            one.name,
            f"{one.tokens:,}",
            f"{one.share:.1%}",
            *(_nats(value) for value in (one.first_loss, one.last_loss, one.change, one.fluctuation)),
            *([_nats(one.last_excess)] if has_excess else []),
            *(["–" if one.kept_share is None else f"{one.kept_share:.1%}"] if has_kept else []),
        )
    return table


def _domains(found: DynamicsSummary) -> Table:
    table = _table("shares by domain", "domain", *CLASSES)
    for name, values in found.domains.items():
        table.add_row(Text(visible_on_one_line(name)), *(f"{values[kind]:.1%}" for kind in CLASSES))
    return table


def _over_time(found: DynamicsSummary) -> Table:
    table = _table("shares over time, from the steps up to each", "step", "tokens read", "mean loss", *CLASSES)
    rows = found.over_time
    # Every n-th one, counted from the last.
    for at in rows[:: -max(1, -(-len(rows) // _MOST_TIMES))][::-1]:
        shares = (f"{at.shares[kind]:.1%}" for kind in CLASSES)
        table.add_row(f"{at.step:,}", f"{at.tokens_seen:,}", f"{at.mean_loss:.4f}", *shares)
    return table


def _stepwise(found: StepwiseSummary, measurements: int) -> str:
    line = (
        f"learned in a step: {counted(found.tokens, 'token')}, {found.share:.1%} (a sigmoid of 4 parameters over "
        f"{measurements} steps explains 90% of the variance and falls by 0.2 nats, 80% of that in the measured range; "
        f"median R² of all tokens {found.median_r2:.2f})"
    )
    if found.midpoint_quartiles is None:
        return line
    quarter, half, three_quarters = found.midpoint_quartiles
    return f"{line}: half of them between {quarter:,.0f} and {three_quarters:,.0f} tokens read, median {half:,.0f}"


def _examples(examples: Sequence[Example]) -> Table:
    table = _table("examples", "class", "losses", "before", "token")
    table.add_column("after", no_wrap=True)
    for one in examples:
        table.add_row(
            one.kind,
            f"{one.losses[0]:.2f} → {one.losses[-1]:.2f}",
            Text(visible_on_one_line(one.before)[-_CONTEXT_CHARACTERS:], style="dim"),
            Text(visible_on_one_line(one.token), style="bold"),
            Text(visible_on_one_line(one.after)[:_CONTEXT_CHARACTERS], style="dim"),
        )
    return table


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
