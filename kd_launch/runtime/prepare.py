"""`python -m kd_launch.runtime.prepare`: models and data into the caches, tokens into `<run_root>/tokens/<key>/`.

Reads {"spec": ..., "cluster": ...} from standard input, or from the file that it is given; writes one line of JSON to
standard output and everything else to standard error. Errors are one line and the exit code of their branch.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pydantic import BaseModel, ValidationError

from kd_launch import __version__
from kd_launch.cluster import CLOSED, Cluster
from kd_launch.errors import KdLaunchError, SpecError, first_problem
from kd_launch.runtime.build import Counts, Progress, Recipe, build_store
from kd_launch.runtime.documents import load_hub
from kd_launch.runtime.hub import fetch_model, why_offline
from kd_launch.runtime.store_writer import StoreWriter, partial_folder, publish, write_header
from kd_launch.runtime.tokenizer_pair import common_tokens, load_tokenizer, refuse_different
from kd_launch.sources import FileHashes, ModelFiles, cached_commit, model_sources
from kd_launch.spec import HubDataset, Source, Spec
from kd_launch.tokens import StoreHeader, file_hashes, is_complete, read_header, store_dir, store_key


class Request(BaseModel):
    """What prepare is asked: a spec with absolute paths, and the cluster for its run root."""

    model_config = CLOSED

    spec: Spec
    cluster: Cluster


class Answer(BaseModel):
    """What prepare answers."""

    train: str
    """The folder of the training sequences."""
    eval: str | None
    stores: list[StoreHeader]
    """Of train and, where there is one, of eval."""
    created: bool
    """Whether anything was built; false when all was there."""


class Wanted(NamedTuple):
    """A store that the spec asks for."""

    where: str
    source: Source
    key: str
    folder: Path


def prepare(request: Request, progress: Progress) -> Answer:
    """Makes sure that the models, the data and both stores are there. Does nothing for what is there already.

    Raises:
        SpecError: models or data are missing, damaged or do not go together.
    """
    spec, run_root = request.spec, Path(request.cluster.run_root).absolute()
    models, hashes = model_sources(spec), file_hashes(run_root)
    for model in models:
        model.folder()  # says what is neither a folder nor a hub id, before anything is asked
    offline = why_offline() if uses_the_hub(spec) else None
    for model in models:
        fetch_model(model, weights=False, offline=offline)
        check_sequence_length(spec.data.sequence_length, model)
    stores = wanted_stores(spec, run_root, hashes)
    missing = {store.folder: store for store in stores if not is_complete(store.folder)}
    if missing:
        create_stores(spec, list(missing.values()), hashes, progress)
    for model in models_with_weights(spec):  # last: it may take hours, and everything else is known to be right
        fetch_model(model, weights=True, offline=offline)
    hashes.save()
    return Answer(
        train=str(stores[0].folder),
        eval=str(stores[1].folder) if len(stores) > 1 else None,
        stores=[read_header(store.folder) for store in stores],
        created=bool(missing),
    )


def uses_the_hub(spec: Spec) -> bool:
    """Whether a model or the data is a hub id."""
    return any(not model.is_folder for model in model_sources(spec)) or any(
        isinstance(source, HubDataset) for source in (spec.data.train, spec.data.eval)
    )


def check_sequence_length(sequence_length: int, model: ModelFiles) -> None:
    """Raises SpecError where the model was not made for such long sequences."""
    architecture = model.architecture()
    most = architecture.max_positions if architecture else None
    if most is not None and sequence_length > most:
        raise SpecError(
            f"data.sequence_length: is {sequence_length} but {model.where} takes {most} tokens at most "
            f"(max_position_embeddings of its config.json); set data.sequence_length to {most} or less"
        )


def models_with_weights(spec: Spec) -> list[ModelFiles]:
    """The models whose weights are read: a random student has none, and one of teacher layers takes the teacher's."""
    student, teacher = model_sources(spec)
    return [teacher, student] if spec.student.start_from == "pretrained" else [teacher]


def wanted_stores(spec: Spec, run_root: Path, hashes: FileHashes) -> list[Wanted]:
    """The stores of data.train and data.eval."""
    wanted: list[Wanted] = []
    for where, source in (("data.train", spec.data.train), ("data.eval", spec.data.eval)):
        if source is not None:
            if isinstance(source, HubDataset):
                find_hub_data(spec, source, where)
            key = store_key(spec, source, where, hashes)
            wanted.append(Wanted(where, source, key, store_dir(run_root, key)))
    return wanted


def find_hub_data(spec: Spec, source: HubDataset, where: str) -> None:
    """Brings a hub data set into the cache where it is not there yet: its commit is part of the store's key."""
    if spec.data.format == "tokens":
        raise SpecError(f"{where}: data.format is tokens, which reads .npy files, but this is a hub data set")
    if cached_commit(source) is None:
        load_hub(source, where)


def create_stores(spec: Spec, missing: Sequence[Wanted], hashes: FileHashes, progress: Progress) -> None:
    """Builds the stores that are not there, after the tokenizers were found to be one."""
    student, teacher = model_sources(spec)
    tokenizer, vocabulary = shared_tokenizer(spec, student, teacher)
    for store in missing:
        recipe = Recipe(store.where, store.source, spec.data, tokenizer, student.where, vocabulary)
        with partial_folder(store.folder) as partial:
            with StoreWriter(partial, spec.data.sequence_length) as writer:
                counts = build_store(recipe, writer, progress)
                sizes = writer.finish()
            if store_key(spec, store.source, store.where, hashes) != store.key:
                raise SpecError(
                    f"{store.where}: a file of the data or of a tokenizer changed while it was read; run again"
                )
            write_header(partial, make_header(recipe, store.key, writer, counts, sizes))
            publish(partial, store.folder)


def shared_tokenizer(spec: Spec, student: ModelFiles, teacher: ModelFiles) -> tuple[Any, int]:
    """The student's tokenizer, and how many ids both models know.

    Data of tokens needs no tokenizer: where a model has none it is (None, the smaller vocabulary).

    Raises:
        SpecError: the tokenizers are missing, broken or different.
    """
    vocabulary = min(found.vocabulary for model in (student, teacher) if (found := model.architecture()))
    if spec.data.format == "tokens" and not (student.tokenizer_files() and teacher.tokenizer_files()):
        return None, vocabulary
    ours = load_tokenizer(student)
    theirs = ours if teacher == student else load_tokenizer(teacher)
    refuse_different(ours, theirs)
    return ours, vocabulary if spec.data.format == "tokens" else min(vocabulary, common_tokens(ours, theirs))


def make_header(recipe: Recipe, key: str, writer: StoreWriter, counts: Counts, sizes: dict[str, int]) -> StoreHeader:
    return StoreHeader(
        key=key,
        kind=recipe.data.format,
        sequences=writer.sequences,
        sequence_length=recipe.data.sequence_length,
        tokens=counts.tokens,
        loss_tokens=writer.loss_tokens,
        documents=counts.documents,
        truncated=counts.truncated,
        dropped=counts.dropped,
        vocabulary=recipe.vocabulary,
        bytes=sizes,
        version=__version__,
    )


# --- the program


def read_request(arguments: Sequence[str], standard_input: TextIO) -> Request:
    """The request in the file that is the one argument, else on standard input.

    Raises:
        SpecError: it cannot be read, or is none.
    """
    if len(arguments) > 1:
        raise SpecError(f"usage: python -m kd_launch.runtime.prepare [FILE], but {len(arguments)} arguments were given")
    name = arguments[0] if arguments else "standard input"
    try:
        text = Path(name).read_text() if arguments else standard_input.read()
        return Request.model_validate_json(text)
    except OSError as error:
        raise SpecError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: is not UTF-8") from error
    except ValidationError as error:
        raise SpecError(f"{name}: {first_problem(error.errors(), 'the document')}") from error


def progress_on(stream: TextIO, now: Callable[[], float] = time.monotonic) -> Progress:
    """One line that is written over again, on a terminal; nothing elsewhere."""
    last = -1.0

    def show(words: str) -> None:
        nonlocal last
        if stream.isatty() and now() - last > 0.2:
            last = now()
            stream.write(f"\r\x1b[K{words}")
            stream.flush()

    return show


def quiet_libraries(show_bars: bool) -> None:
    """Only errors of the libraries, so that ours stand out; their bars on a terminal only. Before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    if not show_bars:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(arguments: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    quiet_libraries(show_bars=sys.stderr.isatty())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by whoever started us until we are here
    try:
        request = read_request(arguments, sys.stdin)
        with redirect_stdout(sys.stderr):  # whatever a library prints is not the answer
            answer = prepare(request, progress_on(sys.stderr))
    except KdLaunchError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    sys.stdout.write(answer.model_dump_json() + "\n")
    return 0


def _fail(message: str, exit_code: int) -> int:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}error: {'; '.join(message.splitlines())}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
