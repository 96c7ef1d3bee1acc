"""The token dynamics of a run in the document: the classes of its probe tokens, with examples."""

from itertools import groupby

import numpy as np

from megaslm.dynamics.examples import examples_of
from megaslm.dynamics.lines import CLASSES, classify, fit_lines
from megaslm.dynamics.summary import Dynamics, summarise
from megaslm.dynamics.trajectories import read_trajectories
from megaslm.report.curves import Entry
from megaslm.report.probe import Probe

EXAMPLES_EACH = 8


def dynamics_entry(probe: Probe) -> Entry:
    """The token dynamics of a run.

    Raises DataError where there are fewer than three measurements, a file is corrupt, or no token has finite losses.
    """
    found = read_trajectories(probe.folder, probe.run.path)
    lines = fit_lines(found.tokens_seen.astype(np.float64), found.losses)
    fitted = Dynamics(lines, classify(lines.change, found.losses[:, -1]), sigmoids=None)
    examples = examples_of(found, lines.change, fitted.classes, probe.texts, each=EXAMPLES_EACH)
    summary = summarise(probe.run.name, found, fitted, examples)
    shown = {kind: list(group) for kind, group in groupby(examples, key=lambda example: example.kind)}
    return {
        "run": probe.run.name,
        "steps": list(summary.steps),
        "tokens": list(summary.tokens_seen),
        "classes": {
            one.name: {
                "share": one.share,
                "tokens": one.tokens,
                "examples": [
                    {"before": each.before, "token": each.token, "after": each.after, "losses": _rounded(each.losses)}
                    for each in shown.get(one.name, [])
                ],
            }
            for one in summary.classes
        },
        "shares_over_time": {
            "steps": [at.step for at in summary.over_time],
            "tokens": [at.tokens_seen for at in summary.over_time],
            "shares": {kind: [at.shares[kind] for at in summary.over_time] for kind in CLASSES},
        },
        "kept_share": None if found.kept is None else {one.name: one.kept_share for one in summary.classes},
    }


def _rounded(losses: tuple[float, ...]) -> list[float]:
    return [round(loss, 4) for loss in losses]
