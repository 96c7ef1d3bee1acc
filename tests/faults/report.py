"""Writes the table of docs/operations.md from the figures of the last run of the fault tests."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.figures import Figure, Measured, figures_file, read_figures
from tests.ranks import ROOT

PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- faults: begin (made by `make faults`) -->", "<!-- faults: end -->"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """A fault, what happens, and how its figures are told of."""

    name: str
    fault: str
    outcome: str
    figures: str
    """A format string over what the tests record under `name`."""

    def told(self, figures: Mapping[str, Figure]) -> str:
        """The figures in words; where one is missing, that they were not measured."""
        needed = {field for _, field, _, _ in string.Formatter().parse(self.figures) if field is not None}
        return self.figures.format(**figures) if needed <= set(figures) else NOT_MEASURED


ROWS = (
    Row(
        "sigkill",
        "SIGKILL of a rank",
        "the others end, nothing is left behind, the group starts again from its last whole checkpoint and comes to "
        "the weights of an undisturbed run, bit for bit",
        "noticed in {detection_seconds:.2f} s; {steps_lost} steps made again (a checkpoint every "
        "{steps_between_checkpoints}); training again {restart_seconds:.0f} s after the kill",
    ),
    Row(
        "watchdog",
        "a rank's process is stopped; it hangs; its loader hangs; it fails with an error of its own",
        "the rank is named, with the state of its process; those that can run print their stacks; the group starts "
        "again; equal weights",
        "ended after {stopped_seconds:.1f}, {hung_seconds:.1f}, {loader_seconds:.1f} and {raised_seconds:.1f} s "
        "(limits here {stopped_limit_seconds:.0f}, {hung_limit_seconds:.0f}, {loader_limit_seconds:.0f} and "
        "{raised_limit_seconds:.0f} s)",
    ),
    Row(
        "sigterm",
        "SIGTERM or SIGUSR1 of one rank: at the start, in a step, in validation, in a save, while it is written, while "
        "a checkpoint is loaded; of all processes, loaders too, by torchrun; of a command that has only begun",
        "all ranks save after the step that they are in or the next one, and exit with 75; equal weights after the "
        "resume",
        "steps lost: SIGTERM {term_start}, {term_step}, {term_validate}, {term_save}, {term_write}, {term_load}; "
        "SIGUSR1 {usr1_start}, {usr1_step}, {usr1_validate}, {usr1_save}, {usr1_write}, {usr1_load}; of all processes "
        "{all_processes}; at the beginning {term_early}",
    ),
    Row(
        "slow_rank",
        "a rank that its host lets run for half of the time",
        "a warning names it, and nobody else",
        "{steps_to_warn} steps until the warning (a report every {steps_between_reports}), which says {ratio} times",
    ),
    Row(
        "full_disk",
        "no room for checkpoints; for the log; for fetched shards",
        "said loudly; the older checkpoint stays and is used; training goes on until `checkpoint.max_failed_saves` "
        "have failed in a row. A full log never ends a run; a full cache ends it with status 2",
        "{steps_made_meanwhile} steps made with {failed_saves} failed saves; {bytes_left} bytes left behind; "
        "{log_lines_lost} lines of the log lost; ended {cache_seconds:.0f} s after its start with a full cache",
    ),
    Row(
        "cut_off_save",
        "a rank killed at ten points of a save, and in the middle of a file of weights or moments",
        "the newest whole checkpoint is used, what was half written is removed; equal weights",
        "{newest_whole_one_used} of {points}; {whole_one_used_after_half_a_file} of {half_files}",
    ),
    Row(
        "damage",
        "a byte of a checkpoint flipped, a file truncated, a file missing",
        "refused by its hash, by the file's name; the checkpoint before is used",
        "{refused_flip_a_byte}, {refused_truncate} and {refused_remove} of {tries} each",
    ),
    Row(
        "not_finite",
        "NaN in reference losses, NaN in a gradient",
        "the step is skipped on all ranks and its rows are named; `guard.max_skipped_steps` in a row end the run",
        "{skipped} of {injected} skipped, {steps_made} of {steps} steps made",
    ),
    Row(
        "spike",
        "a loss spike from bad rows, under `guard.on_spike: rollback`",
        "back to the last checkpoint, and on past the rows read since",
        "{steps_to_return} steps taken back (a checkpoint every {steps_between_checkpoints})",
    ),
    Row(
        "bad_shard",
        "a damaged shard; a server that answers 500",
        "the shard is refused by name; what failed is asked for again, and the weights are equal",
        "{steps_made} steps made of a dataset with it; {failed_requests} failed requests made good",
    ),
    Row(
        "neighbours",
        "two runs on one host, one crashes",
        "the other comes to its weights",
        "left behind: {processes_left} processes, {shared_memory_objects_left} of {shared_memory_objects_used} objects "
        "in shared memory, {ports_left} of {ports_used} listening sockets",
    ),
    Row(
        "soak",
        "a random rank killed again and again",
        "the run finishes; equal weights",
        "{restarts} restarts, one every {seconds_between_kills:.0f} s; training again after "
        "{mean_restart_seconds:.0f} s in the mean; {effective_time_ratio:.0%} of the time in the {steps} steps that "
        "count",
    ),
)


def table(measured: Measured) -> str:
    """The section of the page between its marks."""
    lines = ["| fault | what happens | figures |", "|---|---|---|"]
    for row in ROWS:
        lines.append(f"| {row.fault} | {row.outcome} | {row.told(measured['rows'].get(row.name, {}))} |")
    machine = measured["machine"] or "no machine yet"
    lines += ["", f"Measured on {machine}, two ranks with gloo and a model of 20 thousand parameters."]
    return "\n".join(lines)


def with_table(page: str, measured: Measured) -> str:
    """The page with what is between its marks made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} holds no {BEGIN}"
    assert end, f"{PAGE} holds no {END}"
    return f"{before}{BEGIN}\n{table(measured)}\n{END}{after}"


def main(page: Path = PAGE) -> None:
    """Rewrites the page and says what it was made of."""
    measured = read_figures(figures_file())
    page.write_text(with_table(page.read_text(encoding="utf-8"), measured), encoding="utf-8")
    told = [row.told(measured["rows"].get(row.name, {})) for row in ROWS]
    print(f"{page}: {sum(text != NOT_MEASURED for text in told)} of {len(ROWS)} faults measured")


if __name__ == "__main__":
    main()
