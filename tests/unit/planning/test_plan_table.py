"""docs/plan.md tells the plans of all runs in configs/ as they are computed now."""

from megaslm.planning.machine import machine_of
from megaslm.planning.plan import Request, make_plan
from megaslm.planning.work import DEFAULT_MFU
from tests.doc_tables import require_table
from tests.shipped import CONFIGS, EPOCH_TOKENS, NAMES

GIB, GB = 2**30, 1e9


def row(name: str) -> list[str]:
    request = Request(machine_of("h100-80g", 32), DEFAULT_MFU, epoch_tokens=EPOCH_TOKENS.get(name))
    plan = make_plan(CONFIGS / name, (), request)
    assert plan.training is not None
    assert plan.disk is not None
    scoring = "–" if plan.scoring is None or plan.scoring.work is None else f"{plan.scoring.work.hours:,.2f}"
    per_second = plan.network.bytes_per_second
    return [
        f"`configs/{name}`",
        f"{plan.parameters.total / 1e9:.2f}",
        f"{plan.batches.total_steps:,}",
        f"{plan.batches.micro_batch_rows} × {plan.batches.micro_steps}",
        f"{plan.memory.peak_bytes / GIB:.1f}",
        f"{plan.training.hours:,.2f}",
        scoring,
        "–" if per_second is None else f"{8 * per_second / 1e9:,.0f}",
        f"{plan.disk.checkpoints / GB:,.1f}",
    ]


def test_the_table_has_the_plans_of_all_runs() -> None:
    header = ["run", "B parameters", "steps", "rows × micro-steps"]
    header += ["GiB per GPU", "hours", "hours of scoring", "Gbit/s into a node", "GB of checkpoints"]
    # The demo's other runs, and those of its data, start from a run that is made on this machine.
    rows = [row(name) for name in NAMES if not name.startswith(("demo/", "methods/"))]
    require_table("plan.md", "plans", header, rows)
