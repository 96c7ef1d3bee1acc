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
        "the other ranks end, and no process is left behind; the group restarts from its newest complete checkpoint "
        "and reaches the weights of an undisturbed run, bit for bit",
        "noticed in {detection_seconds:.2f} s; {steps_lost} steps repeated (a checkpoint every "
        "{steps_between_checkpoints} steps); training again {restart_seconds:.0f} s after the kill",
    ),
    Row(
        "watchdog",
        "a rank is stopped by a signal; a rank hangs; the loader of a rank hangs; a rank fails with an error",
        "the rank is named, with the state of its process; ranks that still run print their stacks; the group "
        "restarts; equal weights",
        "ended after {stopped_seconds:.1f}, {hung_seconds:.1f}, {loader_seconds:.1f} and {raised_seconds:.1f} s "
        "(limits in the test: {stopped_limit_seconds:.0f}, {hung_limit_seconds:.0f}, {loader_limit_seconds:.0f} and "
        "{raised_limit_seconds:.0f} s)",
    ),
    Row(
        "sigterm",
        "SIGTERM or SIGUSR1 to one rank: at the start, in a step, in validation, in a save, while a save is written, "
        "while a checkpoint is loaded; to all processes, loaders included, by torchrun; SIGTERM to ranks that have "
        "just started",
        "all ranks finish the current step and at most one more, save, and exit with 75; equal weights after the "
        "resume",
        "steps lost, in this order: SIGTERM {term_start}, {term_step}, {term_validate}, {term_save}, {term_write}, "
        "{term_load}; SIGUSR1 {usr1_start}, {usr1_step}, {usr1_validate}, {usr1_save}, {usr1_write}, {usr1_load}; all "
        "processes {all_processes}; just started {term_early}",
    ),
    Row(
        "slow_rank",
        "a rank that gets the processor for half of the time",
        "a warning names this rank and no other",
        "{steps_to_warn} steps until the warning (a report every {steps_between_reports} steps), which says that the "
        "rank takes {ratio} times as long as the median rank",
    ),
    Row(
        "full_disk",
        "a full disk: for checkpoints; for the log; for the cache of fetched shards",
        "checkpoints: each failed save is an error in the log, older checkpoints stay usable, and training continues "
        "until `checkpoint.max_failed_saves` saves in a row have failed; log: the run continues; cache: the run ends "
        "with status 2",
        "{steps_made_meanwhile} steps made with {failed_saves} failed saves; {bytes_left} bytes left behind; "
        "{log_lines_lost} lines of the log lost; with a full cache, ended {cache_seconds:.0f} s after the start",
    ),
    Row(
        "cut_off_save",
        "a rank is killed at ten points of a save, and in the middle of a file of weights or moments",
        "the newest complete checkpoint is used, and half-written files are removed; equal weights",
        "{newest_whole_one_used} of {points}; {whole_one_used_after_half_a_file} of {half_files}",
    ),
    Row(
        "corruption",
        "a checkpoint with a flipped byte; with a truncated file; with a missing file",
        "the checkpoint is refused by its hashes, and the file is named; the previous checkpoint is used",
        "{refused_flip_a_byte}, {refused_truncate} and {refused_remove} of {tries} refused",
    ),
    Row(
        "not_finite",
        "NaN in reference losses; NaN in a gradient",
        "all ranks skip the step, and its rows are named; `guard.max_skipped_steps` skipped steps in a row end the run",
        "{skipped} of {injected} skipped; {steps_made} of {steps} steps made",
    ),
    Row(
        "spike",
        "a loss spike from bad rows, under `guard.on_spike: rollback`",
        "the run returns to the last checkpoint and skips the rows read since",
        "{steps_to_return} steps taken back (a checkpoint every {steps_between_checkpoints})",
    ),
    Row(
        "bad_shard",
        "a corrupt shard; a server that answers 500",
        "the corrupt shard is refused by name; failed requests are repeated, and the weights are equal",
        "{steps_made} steps made on the dataset with the corrupt shard; {failed_requests} failed requests repeated",
    ),
    Row(
        "neighbours",
        "two runs on one host; one of them crashes",
        "the other run finishes with equal weights",
        "left behind: {processes_left} processes, {shared_files_left} of {shared_files_used} shared files, "
        "{ports_left} of {ports_used} listening sockets",
    ),
    Row(
        "soak",
        "a random rank is killed again and again",
        "the run finishes; equal weights",
        "{restarts} restarts, one every {seconds_between_kills:.0f} s; training again after "
        "{mean_restart_seconds:.0f} s on average; the {steps} steps of the run take {effective_time_ratio:.0%} of the "
        "time, restarts and repeated steps the rest",
    ),
    Row(
        "job_worker_killed",
        "SIGKILL of a worker of `prepare`",
        "another process takes its task, and a new worker replaces it; equal bytes",
        "task taken after {redrawn_seconds:.2f} s",
    ),
    Row(
        "job_worker_out_of_memory",
        "the kernel kills a worker of `prepare` that has run out of memory",
        "another process takes its task; equal bytes",
        "{killed} worker killed",
    ),
    Row(
        "job_poisonous_task",
        "a task that kills every process that works on it",
        "after the third death the task is skipped, the other tasks are done, and the command names the task's file "
        "and ends with status 1; the next run tries the task again",
        "{deaths} deaths, {done} of {tasks} tasks done",
    ),
    Row(
        "job_ray_node_killed",
        "SIGKILL of all processes of a Ray node in the middle of `prepare --engine ray`",
        "the other node does the killed node's task and all remaining tasks; equal bytes",
        "ended {ended_seconds:.0f} s after the kill, on one node in place of two",
    ),
    Row(
        "job_ray_node_killed_scoring",
        "the same in the middle of `score --engine ray`",
        "the other node scores the killed node's rows and all remaining rows; equal bytes",
        "ended {ended_seconds:.0f} s after the kill, on one node in place of two",
    ),
    Row(
        "small_shared_memory",
        "a container's small /dev/shm, with a dataset of millions of rows",
        "no effect: MegaSLM does not use /dev/shm",
        "{mebibytes} MB, {rows:,} rows, two ranks with two loaders each: 20 micro-batches read after {seconds:.1f} s",
    ),
)


FAULTS = Table("faults", "make faults", _ROWS, "two ranks with gloo, and a model of 20 thousand parameters")
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
