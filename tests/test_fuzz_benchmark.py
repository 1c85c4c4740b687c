"""A few hundred hostile files, and that the fuzzer notices what it is there to notice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import fuzz_targets
import pytest


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return fuzz_targets.corpus(tmp_path_factory.mktemp("corpus"))


def test_every_valid_file_is_taken(files: dict[str, bytes], tmp_path: Path) -> None:
    for target in fuzz_targets.TARGETS.values():
        for name in target.files:
            target.read(fuzz.laid(tmp_path, name, files[name], files))


def test_an_input_is_always_the_same(files: dict[str, bytes]) -> None:
    assert [fuzz.made(n, 0, files) for n in range(40)] == [fuzz.made(n, 0, files) for n in range(40)]


def test_hostile_files_are_refused_in_words_and_nothing_runs(files: dict[str, bytes]) -> None:
    row = fuzz.chunk(range(300), 0, files)
    assert row["failures"] == {}
    assert sum(row["answers"].values()) == 300
    assert len(row["answers"]) > 12  # readers, and whether they took what they were given


def die() -> None:
    os._exit(7)


BREACHES: dict[str, tuple[Callable[[], Any], str]] = {
    "another error": (lambda: {}["x"], "KeyError: 'x'"),
    "an error without words": (lambda: int(""), ""),
    "a program": (lambda: subprocess.run([sys.executable, "-V"], capture_output=True), "executed: subprocess.Popen"),
    "a file elsewhere": (lambda: open(os.devnull, "w").close(), "executed: open"),
    "no end": (lambda: [time.process_time() for _ in iter(int, 1)], "Breach: more than"),
    "memory": (lambda: len(bytearray(700 * 2**20)), r"memory: [67]\d\d MiB"),  # some of it may have been there
    "the end of the process": (die, "the process died with 7"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_reader_that_does_what_it_must_not_is_found_out(
    name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    act, expected = BREACHES[name]
    target = fuzz_targets.Target(lambda path: act(), ("compact-3.safetensors",), lambda content, draws: content, 1)
    monkeypatch.setattr(fuzz, "TARGETS", {"bad": target})
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    row = fuzz.chunk(range(1), 0, files)
    if expected:
        assert re.search(expected, row["failures"][0])
    else:
        assert row["answers"] == {"bad/refused": 1}
