"""The text, the length of its sequences, and the tokens prepared from it."""

from collections.abc import Iterator
from pathlib import Path

from kd_launch.architecture import Architecture
from kd_launch.checks.finding import Finding, Place, failure, fine
from kd_launch.checks.models import to_fetch
from kd_launch.errors import SpecError
from kd_launch.preparation import Inputs
from kd_launch.sources import cached_commit, source_files
from kd_launch.spec import HubDataset, Source
from kd_launch.tokens import expected_stores, is_complete


def check_sequence_length(inputs: Inputs) -> Iterator[Finding]:
    length = inputs.spec.data.sequence_length
    models: list[tuple[str, Architecture]] = [("teacher", inputs.teacher), ("student", inputs.student)]
    short = [(role, model.max_positions) for role, model in models if (model.max_positions or length) < length]
    for role, most in short:
        yield failure(
            "data.sequence_length", f"is {length} but the {role} takes {most} tokens at most; set {most} or less"
        )
    if not short:
        yield fine("data.sequence_length", f"{length} tokens")


def check_data(inputs: Inputs, place: Place) -> Iterator[Finding]:
    for where, source in (("data.train", inputs.spec.data.train), ("data.eval", inputs.spec.data.eval)):
        if source is not None:
            yield _source(inputs, where, source, place)


def _source(inputs: Inputs, where: str, source: Source, place: Place) -> Finding:
    if isinstance(source, HubDataset):
        if cached_commit(source) is None:
            return to_fetch(inputs, where, f"{source.hub} is not in the Hugging Face cache", place)
        return fine(where, f"{source.hub} is in the Hugging Face cache")
    try:
        files = source_files(source, where, inputs.spec.data.format)
    except SpecError as error:
        return failure(where, str(error).removeprefix(f"{where}: "))
    return fine(where, f"{len(files)} files" if len(files) > 1 else str(files[0]))


def check_tokens(inputs: Inputs) -> Finding:
    try:
        stores = expected_stores(inputs.spec, Path(inputs.cluster.run_root))
    except SpecError as error:
        return failure("tokens", str(error))
    missing = [store for store in (stores.train, stores.eval) if store is not None and not is_complete(Path(store))]
    if not missing:
        return fine("tokens", stores.train)
    if inputs.cluster.scheduler == "local":
        return fine("tokens", f"{missing[0]} is not prepared yet; submit prepares it")
    return failure("tokens", f"{missing[0]} is not prepared; give `kd-launch prepare`")
