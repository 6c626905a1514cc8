"""A slice of the fuzz of spec and cluster files; `python -m tests.fuzz` runs as many cases as one likes."""

from pathlib import Path

from fuzz import Bench
from fuzz_files import case_of


def test_spoilt_files_end_in_words_and_no_string_becomes_a_command(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outcomes = {number: bench.judge(case_of(7, number)) for number in range(250)}
    wrong = {number: found.wrong for number, found in outcomes.items() if found.wrong}
    assert wrong == {}
    assert {found.exit_code for found in outcomes.values()} >= {0, 2}
    assert sum(found.ran for found in outcomes.values()) > 20


def test_a_canary_sings_where_a_script_forgets_its_quotes(tmp_path: Path) -> None:
    """The fuzz would notice."""
    bench = Bench(tmp_path)
    case = case_of(7, 0)
    assert bench.sings(case, b"#!/bin/bash\necho $(touch canary.was.here)\n") is not None
    assert bench.sings(case, b"#!/bin/bash\necho '$(touch canary.was.here)'\n") is None
