"""`megaslm evaluate`: measure a model on tasks, compare two evaluations, look for tasks' items in a dataset.

`megaslm sample`: keep right answers to fine-tune on.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megaslm.cli_output import JsonFile, announce, is_first_rank, lasting, take_seat, write_json
from megaslm.engine.seat import Seat
from megaslm.errors import ConfigError
from megaslm.launch_cli import refuse_early

if TYPE_CHECKING:
    from megaslm.config.task import HarnessTask, Suite, Task
    from megaslm.launch.findings import Findings


Data = Annotated[Path, typer.Option(help="The folder of the tasks' files.")]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="An OpenAI-compatible completions server that generates.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of all tasks; may be repeated."),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"], typer.Option(help="Arithmetic; auto is bf16 on GPUs, fp32 on CPUs.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")]
TopP = Annotated[float, typer.Option(help="Draw from the most likely tokens up to this probability.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws: the same seed gives the same samples.")]
BatchRows = Annotated[int, typer.Option(min=1, help="Prompts in a batch.")]
SandboxWorkers = Annotated[
    int, typer.Option(min=1, help="Programs that run at the same time, in tasks that run programs.")
]
UnsafeExec = Annotated[
    bool, typer.Option("--unsafe-exec", help="Run a model's programs without a sandbox: they may destroy the machine.")
]


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="The model, a Hugging Face folder; with --server, its name there.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="TASK,…", help="Names of tasks or paths of task files.")] = None,
    suite: Annotated[Path | None, typer.Option(help="A file of tasks that are reported together.")] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval", metavar="TASK,…", help="Tasks of lm-eval instead, by its names, such as mmlu,arc_easy."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="lm-eval: examples in a prompt; by default as its task files say.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="lm-eval: a folder with task files of your own.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="lm-eval: fetch data that is not on this machine.")
    ] = False,
    data: Data = Path("data/eval"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.")] = None,
    measure: Annotated[
        Literal["answers", "losses"],
        typer.Option(help="answers: generate and grade · losses: of written solutions and of choices."),
    ] = "answers",
    server: Server = None,
    overrides: Overrides = None,
    precision: Precision = "auto",
    limit: Limit = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each item; more than one needs a temperature.")] = 1,
    k: Annotated[str, typer.Option("--k", metavar="K,…", help="Report pass@k and maj@k for these k.")] = "1",
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch_rows: BatchRows = 16,
    sandbox_workers: SandboxWorkers = 4,
    unsafe_exec: UnsafeExec = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare the outputs of two evaluations instead; B minus A."),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Look for the tasks' items in a dataset instead: 13 words in a row."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of --overlap; by default one per core.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure a model on tasks: accuracies or losses.

    Use a launcher for several ranks. An interrupted evaluation resumes when the command is run again.
    """
    if compare is not None:
        _compare(*compare, json_file)
        return
    names, by_lm_eval, shown_suite = _tasks(tasks, suite, lm_eval, shots)
    _require_fitting(
        by_lm_eval is not None,
        own={
            "--measure losses": measure != "answers",
            "--server": server is not None,
            "--set": bool(overrides),
            "--samples": samples > 1,
            "--temperature": temperature > 0,
            "--top-p": top_p < 1,
            "--overlap": overlap is not None,
        },
        of_lm_eval={"--include-path": include_path is not None, "--download": download},
    )
    if overlap is not None:
        _overlap(names, overrides or [], data, overlap, limit, workers, json_file)
        return
    if model is None or output is None:
        raise ConfigError("evaluate needs MODEL and --output; `megaslm evaluate --help` shows what else it does")
    _require_temperature(samples, temperature)
    seat = take_seat()
    if by_lm_eval is not None and seat.world_size > 1:
        raise ConfigError("lm-eval runs in one process; start evaluate without a launcher for its tasks")
    announce("evaluate", f"{model} on {', '.join(names)} → {output}")
    loaded = {} if by_lm_eval is not None else _with_data(names, overrides or [], data, seat)

    from megaslm.observe.third_party_output import diverted

    with diverted("evaluate"):
        from megaslm.evaluation.request import EvaluationRequest
        from megaslm.evaluation.view import show_results, wide_console
        from megaslm.observe.console import JobConsole

    request = EvaluationRequest(
        model=model,
        tasks=loaded,
        data=data,
        output=output,
        measure=measure if by_lm_eval is None else "lm-eval",
        suite=shown_suite,
        server=server,
        precision=precision,
        limit=limit,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        k=_numbers(k),
        batch_rows=batch_rows,
        sandbox_workers=sandbox_workers,
        unsafe_programs=unsafe_exec,
    )
    with JobConsole("evaluate", quiet=not is_first_rank()) as console:
        if by_lm_eval is None:
            from megaslm.evaluation.job import evaluate as evaluate_model

            results = evaluate_model(request, console)
        else:
            from megaslm.evaluation.harness.job import evaluate_by_lm_eval

            results = evaluate_by_lm_eval(request, by_lm_eval, console, include_path=include_path, download=download)
    if is_first_rank():
        show_results(wide_console(), results, shown_suite)
        write_json(json_file, results.model_dump(mode="json"))


def sample(
    model: Annotated[str, typer.Argument(help="The model, a Hugging Face folder; with --server, its name there.")],
    tasks: Annotated[
        str, typer.Option(metavar="TASK,…", help="Names of tasks with an interpreter, or paths of task files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    data: Data = Path("data/eval"),
    samples: Annotated[int, typer.Option(min=1, help="Trajectories that are drawn for each item.")] = 10,
    most_per_item: Annotated[int, typer.Option(min=1, help="Trajectories of one item that are kept.")] = 4,
    avoid: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,…", help="Tasks to be evaluated later: items that share 13 words with them are left out."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.6,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    server: Server = None,
    overrides: Overrides = None,
    precision: Precision = "auto",
    limit: Limit = None,
    batch_rows: BatchRows = 16,
    sandbox_workers: SandboxWorkers = 4,
    unsafe_exec: UnsafeExec = False,
    json_file: JsonFile = None,
) -> None:
    """Draw answers with programs; keep those that are right.

    Reads the problems of a train set. Writes summary.json, and messages.jsonl, which `prepare` reads with
    chat_format: tora. All answers stay in the folder answers, an evaluation. An interrupted sampling resumes when the
    command is run again.
    """
    _require_temperature(samples, temperature)
    names = _names(tasks)
    seat = take_seat()
    announce("sample", f"{model} on {', '.join(names)} → {output}")
    loaded = _with_data(names, overrides or [], data, seat)

    from megaslm.observe.third_party_output import diverted

    with diverted("sample"), lasting():
        from megaslm.engine.distributed import on_first_rank
        from megaslm.evaluation.job import evaluate as evaluate_model
        from megaslm.evaluation.request import EvaluationRequest
        from megaslm.evaluation.trajectories import keep_trajectories, sharing_words
        from megaslm.evaluation.view import show_sampled, wide_console
        from megaslm.observe.console import JobConsole
        from megaslm.tasks.items import items_of
        from megaslm.tasks.task_files import load_tasks

    without = [name for name, task in loaded.items() if not task.interpreter]
    if without:
        raise ConfigError(
            f"--tasks {', '.join(without)}: sample needs tasks with interpreter: true, such as tora-gsm8k; pass --set "
            "interpreter=true, or name another task"
        )
    items = {name: items_of(task, data, limit=limit) for name, task in loaded.items()}
    others = {name: items_of(task, data) for name, task in load_tasks(_names(avoid) if avoid else [], []).items()}
    request = EvaluationRequest(
        model=model,
        tasks=loaded,
        data=data,
        output=output / "answers",
        server=server,
        precision=precision,
        limit=limit,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_rows=batch_rows,
        sandbox_workers=sandbox_workers,
        unsafe_programs=unsafe_exec,
    )
    with JobConsole("sample", quiet=not is_first_rank()) as console:
        results = evaluate_model(request, console)
    sampled = on_first_rank(
        lambda: keep_trajectories(
            request.output, output, results, most_per_item=most_per_item, avoided=sharing_words(items, others)
        )
    )
    if is_first_rank():
        show_sampled(wide_console(), sampled, output)
        write_json(json_file, sampled.model_dump(mode="json"))


def _tasks(
    tasks: str | None, suite: Path | None, lm_eval: str | None, shots: int | None
) -> "tuple[list[str], dict[str, HarnessTask] | None, Suite | None]":
    """Names of tasks; how lm-eval measures them, if they are its; the suite that names them."""
    if sum(each is not None for each in (tasks, suite, lm_eval)) != 1:
        raise ConfigError("evaluate needs --tasks NAME,… or --suite FILE or --lm-eval TASK,…, one of the three")
    if shots is not None and lm_eval is None:
        raise ConfigError("--shots is for --lm-eval; a task or suite file says how many examples its prompts have")
    if tasks is not None:
        return _names(tasks), None, None

    from megaslm.config.task import HarnessTask
    from megaslm.tasks.task_files import load_suite

    if lm_eval is not None:
        by_lm_eval = {name: HarnessTask(shots=shots) for name in _names(lm_eval)}
        return list(by_lm_eval), by_lm_eval, None
    assert suite is not None
    loaded = load_suite(suite)
    return list(loaded.tasks or loaded.lm_eval), loaded.lm_eval or None, loaded


def _with_data(names: list[str], overrides: list[str], data: Path, seat: Seat) -> dict[str, "Task"]:
    """The tasks by name, once the first record of each has been found. Raises as `load_tasks` and `refuse_early` do."""
    from megaslm.tasks.items import items_of
    from megaslm.tasks.task_files import load_tasks

    loaded = load_tasks(names, overrides)

    def look(findings: "Findings") -> None:
        for name, task in loaded.items():
            findings.ask(partial(items_of, task, data, limit=1), prefix=f"{name}: ")

    refuse_early(look, seat)
    return loaded


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _require_fitting(is_of_lm_eval: bool, *, own: dict[str, bool], of_lm_eval: dict[str, bool]) -> None:
    given = [option for option, is_given in (own if is_of_lm_eval else of_lm_eval).items() if is_given]
    if given:
        whose = "MegaSLM's own tasks (--tasks)" if is_of_lm_eval else "tasks of lm-eval (--lm-eval)"
        raise ConfigError(f"{', '.join(given)}: only for {whose}; leave it out")


def _require_temperature(samples: int, temperature: float) -> None:
    if samples > 1 and temperature == 0:
        raise ConfigError(f"--samples {samples}: all would be equal at --temperature 0; set a temperature, such as 0.6")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise ConfigError(f"--k {text}: must be numbers from 1 on, with commas between them")
    return numbers


def _compare(first: Path, second: Path, json_file: Path | None) -> None:
    from megaslm.evaluation.compare import compare
    from megaslm.evaluation.view import show_comparisons, wide_console

    comparisons = compare(first, second)
    show_comparisons(wide_console(), comparisons)
    write_json(
        json_file,
        [
            {**each._asdict(), "comparison": {**each.comparison._asdict(), "interval": list(each.comparison.interval)}}
            for each in comparisons
        ],
    )


def _overlap(
    names: list[str],
    overrides: list[str],
    data: Path,
    dataset: str,
    limit: int | None,
    workers: int | None,
    json_file: Path | None,
) -> None:
    announce("evaluate", f"looks for items of {', '.join(names)} in {dataset}")

    from megaslm.evaluation.overlap import overlaps
    from megaslm.evaluation.view import show_overlaps, wide_console
    from megaslm.observe.console import JobConsole
    from megaslm.tasks.items import items_of
    from megaslm.tasks.task_files import load_tasks

    tasks: dict[str, Task] = load_tasks(names, overrides)
    items = {name: items_of(task, data, limit=limit) for name, task in tasks.items()}
    with JobConsole("evaluate") as console:
        found = overlaps(items, dataset, cache="~/.cache/megaslm", workers=workers, watcher=console)
    show_overlaps(wide_console(), found)
    write_json(json_file, [{**each._asdict(), "found": list(each.found)} for each in found])
