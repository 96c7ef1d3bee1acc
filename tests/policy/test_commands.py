"""Every command of README.md and docs/ is one that its program takes, and is run by a test or says what it needs."""

from collections import Counter
from pathlib import Path

import pytest

from tests.policy.commands import Command, calls_of, commands_of, problems, verb_words

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [command for page in PAGES for command in commands_of(page, ROOT)]

VERBATIM = {
    "docs/tutorial.md": "tests/ranks/test_tutorial.py::test_its_commands_lead_from_text_to_a_model",
    "docs/plan.md": "tests/ranks/test_documented_commands.py::test_plans_and_dry_runs_end_well",
    "docs/scaling.md": "tests/ranks/test_documented_commands.py::test_plans_and_dry_runs_end_well",
}
"""Pages whose commands without a mark a test reads from the page and runs."""

_SHARES = "tests/ranks/test_documented_commands.py::test_shares_are_prepared_and_scored_and_a_mask_is_made"
_ATTACH = "tests/ranks/test_attach.py::test_the_documented_column_is_attached"
_EVALUATE = "tests/ranks/test_evaluate.py::test_results_do_not_depend_on_batches_or_ranks"
_OVERLAP = "tests/system/evaluation/test_overlap.py::test_the_command_names_how_many"
_RESUME = "tests/ranks/test_train.py::test_a_resumed_and_extended_run_repeats_the_undisturbed_one"
_REFUSAL = "test_what_a_rank_would_refuse_is_told_before_deepspeed_starts"
_RESTART = "test_a_killed_rank_is_started_again_with_the_others"
_SERVER = "test_the_server_shows_nothing_that_was_taken_back"
_DOCTOR = "tests/system/commands/test_doctor.py::test_two_steps_of_a_run_are_made_and_removed"
_PRUNE = "tests/ranks/test_checkpoint_cli.py::test_prune_removes_what_is_not_to_be_kept"
RUN_BY = {
    "launcher/local.sh": f"tests/system/commands/test_local.py::{_REFUSAL}",
    "launcher/torchrun.sh": f"tests/system/commands/test_torchrun.py::{_RESTART}",
    "tensorboard --logdir": f"tests/system/test_tensorboard_server.py::{_SERVER}",
    "prepare": _SHARES,
    "prepare --share": _SHARES,
    "prepare --finish": _SHARES,
    "inspect": "tests/ranks/test_cli_datasets.py::test_a_row_is_shown",
    "score": _SHARES,
    "score --align": "tests/ranks/test_score_align.py::test_the_command",
    "score --as": "tests/ranks/test_score_as.py::test_any_ranks_and_shares_write_the_same",
    "score --from-run": "tests/ranks/test_score_as.py::test_a_run_is_the_reference_of_its_own_history",
    "score --reference": _SHARES,
    "score --share": _SHARES,
    "score --finish": _SHARES,
    "mask": _SHARES,
    "mask --criterion": _SHARES,
    "mask --keep-ratio": _SHARES,
    "attach": _ATTACH,
    "attach --as": _ATTACH,
    "attach --out": _ATTACH,
    "train": _RESUME,
    "train --resume": _RESUME,
    "train --allow-changed": _RESUME,
    "train --smoke": "tests/ranks/test_smoke.py::test_it_makes_the_first_steps_of_the_run_and_does_not_touch_it",
    "doctor": _DOCTOR,
    "doctor --steps": _DOCTOR,
    "doctor --json": _DOCTOR,
    "export": "tests/ranks/test_train.py::test_an_export_has_the_cost_of_its_checkpoint",
    "evaluate": _EVALUATE,
    "evaluate --tasks": _EVALUATE,
    "evaluate --data": _EVALUATE,
    "evaluate -o": _EVALUATE,
    "evaluate --compare": "tests/ranks/test_evaluate.py::test_two_evaluations_are_compared",
    "evaluate --overlap": _OVERLAP,
    "dynamics": "tests/ranks/test_probe.py::test_checkpoints_measure_what_the_run_measured",
    "report": "tests/ranks/test_report.py::test_trained_runs_are_reported_with_their_tokens_costs_and_curves",
    "report -o": "tests/ranks/test_report.py::test_trained_runs_are_reported_with_their_tokens_costs_and_curves",
    "checkpoint ls": "tests/ranks/test_checkpoint_cli.py::test_ls_lists_what_is_complete_oldest_first",
    "checkpoint verify": "tests/ranks/test_checkpoint_cli.py::test_verify_finds_nothing_in_what_is_as_it_was_written",
    "checkpoint prune": _PRUNE,
    "checkpoint prune --keep-last": _PRUNE,
}
"""What a command uses, and the test that runs it on small data."""


def is_verbatim(command: Command) -> bool:
    """Whether a test runs the command as it stands."""
    same = [other for other in COMMANDS if other.words == command.words and not other.needs]
    return verb_words(command.words) is not None and any(other.page in VERBATIM for other in same)


def untested(command: Command) -> set[str]:
    """What of a command no test runs; empty where it has a mark."""
    return set() if command.needs or is_verbatim(command) else calls_of(command) - set(RUN_BY)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_take_the_commands_of_a_page(page: Path) -> None:
    found = [f"{command}: {problem}" for command in commands_of(page, ROOT) for problem in problems(command, ROOT)]
    assert found == []


def test_each_command_is_run_by_a_test_or_says_what_it_needs() -> None:
    assert {str(command): missing for command in COMMANDS if (missing := untested(command))} == {}


@pytest.mark.parametrize("call", [*VERBATIM, *RUN_BY])
def test_the_named_test_is_there_and_runs_it(call: str) -> None:
    file, name = (VERBATIM | RUN_BY)[call].split("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {name}(" in source
    words = [Path(call).name] if call in (*VERBATIM, "launcher/local.sh", "launcher/torchrun.sh") else call.split()
    assert [word for word in words if word not in source + _helpers(source)] == []


def test_runs_of_billions_of_parameters_are_marked() -> None:
    large = ("rho-", "weak-", "self-", "tora/")
    starts = [
        command
        for command in COMMANDS
        if {*(verb_words(command.words) or ())[:1]} & {"train", "sweep", "launch"}
        if "--dry-run" not in command.words and any(f"configs/{name}" in " ".join(command.words) for name in large)
    ]
    assert starts
    assert [str(command) for command in starts if not command.needs] == []


def test_what_is_wrong_with_a_command_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nmegaslm score --refrence R IN OUT\nmegaslm skore\nmegaslm train configs/none.yaml --set a=b\n"
        "launcher/local.sh train RUN.yaml --smoke-steps many\nmake nothing\n"
        "megaslm launch --cluster C.yaml score IN\n"
        "sbatch --nodes=2 launcher/slurm/train.sbatch RUN.yaml --slow\n```\n",
        encoding="utf-8",
    )
    (tmp_path / "Makefile").write_text("\ntest:\n", encoding="utf-8")
    found = Counter(
        " ".join(command.words[:3]) for command in commands_of(page, tmp_path) for _ in problems(command, tmp_path)
    )
    assert found == {
        "megaslm score --refrence": 1,
        "megaslm skore": 1,
        "megaslm train configs/none.yaml": 1,
        "launcher/local.sh train RUN.yaml": 1,
        "make nothing": 1,
        "megaslm launch --cluster": 1,
        "sbatch --nodes=2 launcher/slurm/train.sbatch": 2,
    }


def test_a_mark_holds_for_its_command_or_up_to_an_empty_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\n# needs GPUs\nmegaslm export A B\nmegaslm export \\\n    C D\n\n"
        "megaslm export E F    # twice\n"
        "RANKS=4 launcher/local.sh train R.yaml    # needs a cluster: or four GPUs\n```\n",
        encoding="utf-8",
    )
    assert [(command.words[-1], command.needs) for command in commands_of(page, tmp_path)] == [
        ("B", "GPUs"),
        ("D", "GPUs"),
        ("F", ""),
        ("R.yaml", "a cluster"),
    ]


def _helpers(source: str) -> str:
    """The modules of tests that a test imports: they may hold the command's words."""
    names = [line.split()[1] for line in source.splitlines() if line.startswith("from tests.")]
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in names]
    return "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
