"""Writes the tables of docs/operations.md from the figures of the last run of their tests."""

import sys
from pathlib import Path

from tests.faults.figures import figures_file, read_figures
from tests.faults.table import Row, Table
from tests.launched import ROOT
from tests.multinode.report import NODES

PAGE = ROOT / "docs" / "operations.md"

_ROWS = (
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
        "a rank that gets the processor for half of the time",
        "a warning names it, and nobody else",
        "{steps_to_warn} steps until the warning (a report every {steps_between_reports}), which says {ratio} times",
    ),
    Row(
        "full_disk",
        "no room for checkpoints; for the log; for fetched shards",
        "each failed save is an error in the log; the older checkpoint stays and is used; training goes on until "
        "`checkpoint.max_failed_saves` "
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
        "corruption",
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
        "a corrupt shard; a server that answers 500",
        "the shard is refused by name; what failed is asked for again, and the weights are equal",
        "{steps_made} steps made of a dataset with it; {failed_requests} failed requests made good",
    ),
    Row(
        "neighbours",
        "two runs on one host, one crashes",
        "the other comes to its weights",
        "left behind: {processes_left} processes, {shared_files_left} of {shared_files_used} files that they shared, "
        "{ports_left} of {ports_used} listening sockets",
    ),
    Row(
        "soak",
        "a random rank killed again and again",
        "the run finishes; equal weights",
        "{restarts} restarts, one every {seconds_between_kills:.0f} s; training again after "
        "{mean_restart_seconds:.0f} s in the mean; {effective_time_ratio:.0%} of the time in the {steps} steps that "
        "count",
    ),
    Row(
        "job_worker_killed",
        "SIGKILL of a worker of `prepare`",
        "another process draws its task, and a new worker takes its place; equal bytes",
        "drawn again after {redrawn_seconds:.2f} s",
    ),
    Row(
        "job_worker_out_of_memory",
        "the kernel kills a worker of `prepare` that has run out of memory",
        "another process draws its task; equal bytes",
        "{killed} killed",
    ),
    Row(
        "job_poisonous_task",
        "a task that kills whoever does it",
        "it is left after the third death and named with its file, status 1; the others are done; the next run tries "
        "it again",
        "{deaths} deaths, {done} of {tasks} tasks done",
    ),
    Row(
        "job_ray_node_killed",
        "SIGKILL of all processes of a Ray node in the middle of `prepare --engine ray`",
        "the other node does its task, and all the rest; equal bytes",
        "ended {ended_seconds:.0f} s after the kill, on one node in place of two",
    ),
    Row(
        "small_shared_memory",
        "a container's /dev/shm, and a dataset of millions of rows",
        "nothing: MegaSLM does not use it",
        "{mebibytes} MB, {rows:,} rows, two ranks with two loaders each: 20 micro-batches read after {seconds:.1f} s",
    ),
)


FAULTS = Table("faults", "make faults", _ROWS, "two ranks with gloo and a model of 20 thousand parameters")
TABLES = {table.name: table for table in (FAULTS, NODES)}


def main(name: str, page: Path = PAGE) -> None:
    """Rewrites one table of the page and says what it was made of."""
    table, measured = TABLES[name], read_figures(figures_file())
    if not table.measured_rows(measured):
        sys.exit(f"{figures_file()}: nothing of the table was measured; {page} stays as it is")
    page.write_text(table.put_into(page.read_text(encoding="utf-8"), measured), encoding="utf-8")
    print(f"{page}: {table.measured_rows(measured)} of {len(table.rows)} faults measured")


if __name__ == "__main__":
    main(sys.argv[1])
