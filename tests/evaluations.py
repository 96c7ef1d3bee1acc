"""Records of evaluations, made for tests."""

from typing import Any

from megaslm.evaluation.records import Description


def description(**changes: Any) -> Description:
    """What a small evaluation of answers says of itself."""
    fields: dict[str, Any] = {
        "model": "m",
        "weights_sha256": "w",
        "server": False,
        "measure": "answers",
        "precision": "fp32",
        "tasks": {},
        "data": {},
        "limit": None,
        "samples": 1,
        "temperature": 0,
        "top_p": 1,
        "seed": 0,
        "batch_rows": 1,
        "megaslm_version": "0",
    }
    return Description(**{**fields, **changes})
