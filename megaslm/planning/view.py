"""The output of `megaslm plan`."""

from collections.abc import Iterator

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megaslm.config.devices import GPU_KINDS
from megaslm.observe.display import counted, duration, gib, operations, percent, rounded, size
from megaslm.planning.fit import Fit
from megaslm.planning.foreseen import PlannedExact
from megaslm.planning.machine import GPUS_OF_A_HOST, USABLE_MEMORY
from megaslm.planning.plan import Plan
from megaslm.planning.work import Work

_RUNS = 4
"""That share scores, for an example."""
_UNKNOWN_LENGTH = "only the dataset tells the length; give the targets of an epoch with --epoch-tokens"
_UNKNOWN_PEAK = "the peak rate of this machine is not known; name the GPUs of the run with --gpu"
_ONLY_BF16 = "only the peak rates of bf16 are known, and the run computes in fp32 (model.precision)"
_OTHERS = f"without --gpu the plan is for this machine; --gpu takes {', '.join(GPU_KINDS)}"


def show_plan(console: Console, plan: Plan) -> None:
    """Prints a plan: the run, its memory, then time, disk and network."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in (*_run(plan), *_cost(plan)):
        grid.add_row(name, Text(value))
    console.print(Panel(grid, title=f"plan · {plan.config}", title_align="left", border_style="dim"))
    console.print(_memory(plan))
    better = plan.one_micro_step
    if better is not None:
        line = (
            f"one micro-step fits too, with --set train.micro_batch_rows={better.rows}: {gib(better.peak_bytes)} GiB "
            f"of the {gib(plan.machine.usable_bytes)} GiB that may be used"
        )
        if better.network_bytes_per_step < plan.network.bytes_per_step:
            who = "GPU" if plan.machine.on_gpu else "rank"
            line += f"; a {who} then receives {size(better.network_bytes_per_step)} per step"
        if better.makes_exact_free:
            line += "; slm.mode = exact then needs neither kept graphs nor a second forward pass"
        console.print(f"rows · {line}", soft_wrap=True)


def show_fit(console: Console, fit: Fit) -> None:
    """Prints what makes a run fit."""
    needed, room = (f"{gib(count)} GiB" for count in (fit.plan.memory.peak_bytes, fit.plan.machine.usable_bytes))
    options = " ".join(f"--set {override}" for override in fit.overrides)
    if not fit.plan.fits:
        line = (
            f"no settings that were tried fit: the least memory is {needed}, with "
            f"{options or 'the settings as they are'}; {room} may be used; plan with more GPUs, or with larger ones"
        )
    elif fit.overrides:
        line = f"it fits with {options}: {needed} of the {room} that may be used"
    else:
        line = f"it fits as it is: {needed} of the {room} that may be used"
    console.print(f"fit · {line}", soft_wrap=True)


def _run(plan: Plan) -> Iterator[tuple[str, str]]:
    counts, batches = plan.parameters, plan.batches
    yield (
        "model",
        f"{counts.total:,} parameters: embedding {counts.embedding:,}, layers {counts.decoder:,}, head {counts.head:,}",
    )
    yield "", plan.model_source
    kind = "GPU" if plan.machine.on_gpu else "rank"
    device = f"{'this machine: ' * plan.machine.is_this_one}{plan.machine.device}"
    yield (
        "runs on",
        f"{counted(batches.world_size, kind)} ({device}), {plan.precision}, ZeRO stage {plan.zero_stage}, "
        f"recompute {plan.recompute}",
    )
    if plan.machine.is_this_one:
        yield "", _OTHERS
    yield (
        "step",
        f"{batches.tokens_per_step:,} tokens: {counted(batches.world_size, 'rank')} × "
        f"{counted(batches.micro_batch_rows, 'row')} × {counted(batches.micro_steps, 'micro-step')}",
    )
    yield "length", _UNKNOWN_LENGTH if plan.tokens is None else f"{batches.total_steps:,} steps, {plan.tokens:,} tokens"


def _cost(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "operations", f"{operations(plan.flops_per_token)} per token, of training"
    if plan.exact is not None:
        yield "exact", _exact(plan.exact)
    if plan.training is not None:
        yield "time", f"at {percent(plan.mfu)} MFU {_time(plan.training)}"
        if plan.recompute != "none":
            yield "", f"recompute {plan.recompute} is not counted: MFU has model FLOPs only, and is lower with it"
    elif plan.machine.peak_tflops is None:
        yield "time", _UNKNOWN_PEAK
    elif plan.precision != "bf16":
        yield "time", _ONLY_BF16
    scoring = plan.scoring
    if scoring is not None:
        time = "" if scoring.work is None else f": {_time(scoring.work)}"
        yield "scoring", f"{scoring.tokens:,} tokens by {scoring.parameters:,} parameters{time}"
        yield "", scoring.reference
    if plan.reference_training is not None:
        yield "reference", f"its training: {_time(plan.reference_training)}"
    yield from _total(plan)
    yield from _pays(plan)
    if plan.disk is not None:
        disk = plan.disk
        yield (
            "disk",
            f"shards {size(disk.shards)}; {counted(disk.kept, 'checkpoint')} of {size(disk.checkpoint)} at once, "
            f"{size(disk.checkpoints)}",
        )
    if plan.batches.world_size > 1:
        yield "network", _network(plan)


def _exact(exact: PlannedExact) -> str:
    graphs, may_take = size(exact.graph_bytes), size(exact.may_take_bytes)
    asked = f"slm.exact_by = {exact.asked_for}"
    if exact.keeps_graphs:
        return f"keeps the graphs of all micro-steps, {graphs} more per rank ({asked})"
    why = f": kept graphs take {graphs}, more than half of the memory left, {may_take}" * (exact.asked_for == "auto")
    return f"makes a second forward pass, counted in operations and time ({asked}){why}"


def _total(plan: Plan) -> Iterator[tuple[str, str]]:
    """The sum of what is told, where there is something to add."""
    scoring = None if plan.scoring is None else plan.scoring.work
    parts = {"run": plan.training, "scoring": scoring, "reference": plan.reference_training}
    known = {name: work for name, work in parts.items() if work is not None}
    if plan.training is None or len(known) == 1:
        return
    hours, gpu_hours = (
        sum(values) for values in zip(*((work.hours, work.gpu_hours) for work in known.values()), strict=True)
    )
    prices = [work.money for work in known.values() if work.money is not None]
    money = f", which cost {sum(prices):,.0f}" if prices else ""
    missing = "" if "reference" in known else "; --reference-run adds the reference's training"
    yield "total", f"{' + '.join(known)}: {duration(3600 * hours)}; {gpu_hours:,.4g} GPU-hours{money}{missing}"


def _pays(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a selective run must save to make up for its scores."""
    alone, shared = plan.break_even(1), plan.break_even(_RUNS)
    if alone is None or shared is None:
        return
    reaches = "reaches CLM's last loss after at most"
    others = f"where {_RUNS} runs read the same scores"
    if alone > 0:
        line = f"if it {reaches} {alone:.0%} of the tokens; {shared:.0%} {others}"
    elif shared > 0:
        line = f"{others}, if each {reaches} {shared:.0%} of the tokens; a run alone takes less time than its scores"
    else:
        line = f"not even {others}: the runs take less time than the scores"
    yield "pays", line
    yield "", "in our measurements only by a reference that ended below CLM on held-out text of the target"
    if plan.reference_training is None:
        yield "", "the reference's training is not counted"


def _network(plan: Plan) -> str:
    who, network = "GPU" if plan.machine.on_gpu else "rank", plan.network
    line = f"a {who} receives {size(network.bytes_per_step)} per step"
    if network.bytes_per_second is None:
        return line
    gigabits = 8 * network.bytes_per_second / 1e9
    place = "node" if plan.batches.world_size > GPUS_OF_A_HOST else who
    return f"{line}: {gigabits:,.3g} Gbit/s into each {place}, above which this can hide behind the computation"


def _time(work: Work) -> str:
    money = "" if work.money is None else f", which cost {work.money:,.0f}"
    return (
        f"{duration(3600 * work.hours)}, {rounded(work.tokens_per_second)} tokens/s; "
        f"{work.gpu_hours:,.4g} GPU-hours{money}"
    )


def _memory(plan: Plan) -> Table:
    memory, machine = plan.memory, plan.machine
    table = Table(title=f"memory of a {'GPU' if machine.on_gpu else 'rank'}", title_justify="left", box=None)
    table.add_column("part", no_wrap=True)
    table.add_column("GiB", justify="right")
    table.add_column("what it is")
    states = {
        "process": (memory.process, "Python, PyTorch, DeepSpeed and their libraries"),
        "weights": (memory.weights, f"in {plan.precision}" + (", divided" if plan.zero_stage == 3 else ", whole")),
        "gradients": (memory.gradients, "added up in float32"),
        "optimiser": (memory.optimizer, "master weights and two moments, in float32"),
        "buffers": (memory.buffers, "in which gradients are reduced"),
    }
    for name, (count_bytes, text) in states.items():
        if count_bytes:
            table.add_row(name, gib(count_bytes), text)
    moments = {
        "gathered": (memory.gathered, "whole weights of the layers at hand"),
        "activations": (memory.activations, f"kept for the backward pass, recompute {plan.recompute}"),
        "forward": (memory.forward, "beside them, in the layers' forward pass"),
        "head": (memory.head, "or beside them, in the loss head"),
        "backward": (memory.backward, "or beside them, in the layers' backward pass, gradients included"),
        "update": (memory.update, "or, without gathered weights and activations, in the optimiser's step"),
    }
    for name, (count_bytes, text) in moments.items():
        marked = Text(text + (" ← the peak" if name == memory.peak_moment else ""))
        if count_bytes:
            table.add_row(name, gib(count_bytes), marked)
    table.add_section()
    verdict = "fits" if plan.fits else "does not fit: --fit looks for settings that do"
    table.add_row(
        "peak",
        gib(memory.peak_bytes),
        f"{verdict}; {gib(machine.usable_bytes)} GiB may be used, {USABLE_MEMORY:.0%} of "
        f"{gib(machine.memory_bytes)} GiB",
        style="bold",
    )
    return table
