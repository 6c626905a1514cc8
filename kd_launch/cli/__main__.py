"""The command line, `kd-launch`: its commands in the order that --help shows them."""

import json

from kd_launch.cli import before, calibrating, estimating, running, following  # noqa: F401 - they join in this order  # isort: skip
from kd_launch.cli.app import app


@app.command()
def schema() -> None:
    """Show the JSON Schema of the spec, for editors and programs."""
    from kd_launch.spec import Spec

    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "kd-launch spec"}
    print(json.dumps({**Spec.model_json_schema(), **head}, indent=2))


def main() -> None:
    """The entry point of `kd-launch`."""
    app(prog_name="kd-launch")


if __name__ == "__main__":
    main()
