"""Hostile files by the hundred thousand: `python benchmarks/fuzz.py`. The answer is ValueError, and nothing runs.

Valid files (tests/files, and others made here) are spoilt (benchmarks/mutations.py) and given to every reader of hfp
(benchmarks/fuzz_targets.py). A reader may take what it is given or raise ValueError, within SECONDS of processor time
and MEMORY. Any other exception, a process that dies, a file that is written elsewhere, a program that is started, and
an unpickler that looks up what a file names are failures. A .pt2 file, which is a program, is spoilt and read as
trusted.

Input number n of a seed is always the same one: `--input 1234` does it again, with its traceback. Every chunk of inputs
becomes a line of runs/fuzz.jsonl; stopped, the benchmark goes on where it was. The summary is results/fuzz.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import HERE, RESULTS, engine, machine, write_json
from fuzz_targets import TARGETS, corpus
from mutations import CANARY
from rich.console import Console
from rich.table import Table

COUNT = 100_000
CHUNK = 500
SECONDS = 10
"""Of processor time for one input."""
MEMORY = 512 * 2**20
"""More than this must not be added by one input to what a process has in memory."""
ADDRESSES = 6 * 2**30
"""More than this a process cannot even ask for."""
RUN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "socket.connect")
CHANGED = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree")


class Breach(BaseException):
    """What must not happen; no `except Exception` hides it."""


class Watch:
    """Listens to the interpreter itself: programs started, files written elsewhere, names looked up for a pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on = str(folder), False
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if (
            event in RUN
            or event == "pickle.find_class"
            or (event == "import" and args[0] == CANARY)
            or (event in CHANGED and not self._inside(args[0]))
            or (event == "open" and self._writes(args) and not self._inside(args[0]))
        ):
            self.seen.append(f"{event} {args!r}"[:200])

    def _inside(self, path: Any) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self.folder) if isinstance(path, (str, bytes)) else True

    def _writes(self, args: tuple[Any, ...]) -> bool:
        return bool(args[2] & (os.O_WRONLY | os.O_RDWR)) if isinstance(args[2], int) else False


def made(number: int, seed: int, files: dict[str, bytes]) -> tuple[str, str, bytes]:
    """Input number `number`: the target, the name of its file, and what is in it."""
    draws = random.Random(f"{seed}/{number}")
    target = draws.choices(list(TARGETS), [each.share for each in TARGETS.values()])[0]
    name = draws.choice(TARGETS[target].files)
    spoil = TARGETS[target].spoil
    if name.endswith(".safetensors") and spoil.__name__ == "archive":
        spoil = TARGETS["foreign safetensors"].spoil
    return target, name, spoil(files[name], draws)


def laid(folder: Path, name: str, content: bytes, files: dict[str, bytes]) -> Path:
    """The file under its name; of a run, the others as well."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if "/" in name:
        for other in path.parent.iterdir():
            other.unlink()
        for other, whole in files.items():
            if other.startswith(name.partition("/")[0] + "/"):
                (folder / other).write_bytes(whole)
    path.write_bytes(content)
    return path


def answer(target: str, path: Path, watch: Watch) -> str:
    """What the reader makes of a file: "taken", "refused", or what is wrong."""

    def too_long(*_: object) -> None:
        raise Breach(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watch.seen.clear()
    watch.on = True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            TARGETS[target].read(path)
        found = "taken"
    except ValueError as error:
        found = "refused" if str(error).strip() and not isinstance(error, UnicodeError) else f"no words: {error!r}"
    except (Breach, Exception) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"[:400]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.on = False
    return f"executed: {watch.seen[0]}" if watch.seen else found


# ---------------------------------------------------------------------------------------------- in processes


def chunk(numbers: range, seed: int, files: dict[str, bytes]) -> dict[str, Any]:
    """A row for many inputs, which are done in processes of their own: where one dies, the next goes on behind it."""
    begin = time.perf_counter()
    row: dict[str, Any] = {"first": numbers[0], "answers": {}, "failures": {}, "slowest": [0.0, -1], "growth": [0, -1]}
    answers: Counter[str] = Counter()
    left = numbers
    while left:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            _work(left, seed, files, writing)
        os.close(writing)
        done = left.start - 1
        with os.fdopen(reading) as told:
            for line in told:
                done, target, found, seconds, growth = json.loads(line)
                row["slowest"] = max(row["slowest"], [seconds, done])
                row["growth"] = max(row["growth"], [growth, done])
                if growth > MEMORY:
                    found = f"memory: {growth / 2**20:.0f} MiB"
                if found not in ("taken", "refused"):
                    row["failures"][done] = f"{target}: {found}"
                    found = "failed"
                answers[f"{target}/{found}"] += 1
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if done + 1 < left.stop:
            row["failures"][done + 1] = f"{made(done + 1, seed, files)[0]}: the process died with {code}"
            done += 1
        left = range(done + 1, left.stop)
    return row | {"answers": dict(answers), "seconds": round(time.perf_counter() - begin, 2)}


def _work(numbers: range, seed: int, files: dict[str, bytes], writing: int) -> None:
    """What a process does; it tells of each input on `writing`."""
    code = 1
    folder = Path(tempfile.mkdtemp(dir=_memory()))
    try:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        watch = Watch(folder)
        sys.addaudithook(watch)
        for number in numbers:
            target, name, content = made(number, seed, files)
            path = laid(folder, name, content, files)
            before, start = _peak(), time.process_time()
            found = answer(target, path, watch)
            spent, grown = time.process_time() - start, _peak() - before
            if list(folder.rglob(f"*{CANARY}*")):
                found = "executed: a file was touched"
            os.write(writing, f"{json.dumps([number, target, found, round(spent, 4), grown])}\n".encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(code)


def _memory() -> str | None:
    """A folder in memory, where there is one: disks wear out."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------------------------------------- all of them


def recorded(path: Path, seed: int, also: list[str]) -> dict[int, dict[str, Any]]:
    """The chunks that are done already, by this engine; and those without a failure by engines that count as well."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # half a line, of a benchmark that was killed
            row = json.loads(line)
            own = row["engine"] == engine()
            if row["seed"] == seed and (own or (row["engine"] in also and not row["failures"])):
                rows[row["first"]] = row
    return rows


def chunks(count: int, seed: int, files: dict[str, bytes], record: Path, also: list[str]) -> Iterator[dict[str, Any]]:
    done, own = recorded(record, seed, also), {"engine": engine(), "seed": seed}
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a") as out:
        for first in range(0, count, CHUNK):
            if first not in done:
                done[first] = own | chunk(range(first, min(first + CHUNK, count)), seed, files)
                out.write(f"\n{json.dumps(done[first])}\n")
                out.flush()
                for number, what in done[first]["failures"].items():
                    print(f"{number}: {what}", flush=True)
            yield done[first]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    answers: Counter[str] = sum((Counter(row["answers"]) for row in rows), Counter())
    failures = {number: what for row in rows for number, what in row["failures"].items()}
    seconds, slowest = max(row["slowest"] for row in rows)
    growth, largest = max(row["growth"] for row in rows)
    return {
        "chunks_by_engine": dict(Counter(row["engine"] for row in rows)),
        "inputs": answers.total() + sum("the process died" in what for what in failures.values()),
        "failures": len(failures),
        "executed": sum("executed" in what for what in failures.values()),
        "answers": {
            target: {found: answers[f"{target}/{found}"] for found in ("refused", "taken", "failed")}
            for target in TARGETS
        },
        "slowest": {"seconds": seconds, "input": slowest},
        "memory": {"mib": round(growth / 2**20), "input": largest},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "failed": dict(list(failures.items())[:100]),
    }


def show(result: dict[str, Any]) -> None:
    table = Table("reader", "refused", "taken", "failed", title=f"{result['inputs']:,} inputs")
    for target, found in result["answers"].items():
        table.add_row(target, *(f"{count:,}" for count in found.values()))
    Console(width=100).print(table)
    slow, large = result["slowest"], result["memory"]
    print(f"failures {result['failures']}, of them executions {result['executed']}")
    print(
        f"slowest {slow['seconds']:.2f} s (input {slow['input']}), largest {large['mib']} MiB (input {large['input']})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=int, help="this one only, with its traceback")
    parser.add_argument(
        "--also", action="append", default=[], metavar="ENGINE",
        help="chunks without a failure by this engine stay as they are: after a bug is mended",
    )  # fmt: skip
    parser.add_argument("--record", type=Path, default=HERE.parent / "runs" / "fuzz.jsonl")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = corpus(Path(temporary))
        if given.input is not None:
            target, name, content = made(given.input, given.seed, files)
            print(target, name, len(content), content[:300])
            TARGETS[target].read(laid(Path(temporary), name, content, files))
            return 0
    rows = list(chunks(given.count, given.seed, files, given.record, given.also))
    result = {"machine": machine(), "seed": given.seed, **summary(rows)}
    write_json(given.output, result)
    show(result)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
