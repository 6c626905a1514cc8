"""What of a run decides what is learnt, and so must stay when it goes on: the spec without all about its layout."""

import json
from typing import Any

from kd_launch.plan import RunPlan

_SECTIONS = ("teacher", "student", "distillation", "data", "training")
# What may differ between two attempts of a run: where it runs and how fast.
_LAYOUT = {
    "teacher": {"parallelism", "pool", "gpus"},
    "student": {"parallelism", "pool", "gpus", "reshard_after_forward", "activation_recompute"},
    "distillation": {"payload", "prefetch"},
    "training": {"micro_batch_size", "compile"},
}


def decisive(run: RunPlan) -> dict[str, Any]:
    """By dotted key, as JSON values; the prepared tokens are one of them."""
    spec = json.loads(run.spec.model_dump_json())
    found = {
        f"{section}.{key}": value
        for section in _SECTIONS
        for key, value in spec[section].items()
        if key not in _LAYOUT.get(section, set())
    }
    return {**found, "tokens": run.tokens.model_dump(mode="json") if run.tokens else None}
