"""The same run with each payload: bytes that travel per loss token, time, losses.

    python -m benchmarks.payloads [--steps 10] [--small]

Hidden states move h / V of the bytes of logits and give the same losses; top-k is not exact.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.material import make_material, small_material, write_spec
from benchmarks.measuring import keep, show, submit

KINDS = ("hidden_states", "logits", "top_k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="models of 1M parameters")
    asked = parser.parse_args()
    figures, sizes = [], {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        material = (small_material if asked.small else make_material)(Path(place), steps=asked.steps)
        spec = write_spec(material, processes=2, cores=2, placement="disjoint")
        for kind in KINDS:
            folder = Path(place) / kind
            figures.append(submit(kind, spec, folder, material.batch, (f"distillation.payload={kind}",)))
            sizes[kind] = json.loads((folder / "plan.json").read_text())["layout"]["payload_bytes_per_token"]
    show(figures)
    hidden, logits = figures[:2]
    apart = max(abs(a - b) / b for a, b in zip(hidden.losses, logits.losses, strict=True))
    keep("payloads", {"bytes_per_token": sizes, "losses_apart": apart}, figures)
    print("bytes per loss token: " + ", ".join(f"{kind} {size:.0f}" for kind, size in sizes.items()))
    print(f"hidden states: {sizes['hidden_states'] / sizes['logits']:.5f} of the bytes, losses {apart:.1e} apart")


if __name__ == "__main__":
    main()
