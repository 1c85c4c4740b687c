"""Three hundred faults: `python benchmarks/chaos.py`. Runs of train.py are killed, cut off, damaged, and gone on with.

A story is one training run of LeNet-5 on the digits that meets five faults, one after the other: SIGKILL, SIGTERM and
Ctrl-C at random instants and in the middle of writing a file, a disk without space (a small tmpfs that is really
full, and errors injected into single steps of a write), files that are truncated, lost, have bits flipped or a block
of zeros. After each it is resumed. In the end everything has to be equal, bit by bit, to the same run left in peace:
weights, gates, optimizer state, keep vector, every loss and accuracy. Where a file was damaged the run may also stop
with an error that names the file, which stays as it is; then it is put back, as from a backup, and the run goes on.

Nothing may be lost: no fault of a process takes more than the epoch under way, no damaged file more than one epoch.

The processes are forked from one that has imported everything, which saves seconds each; what that leaves out, faults
while Python starts and imports, comes before a run touches any file. `--kills` more are done to processes of their own.

Damage to config.json is done only once there is a checkpoint, which has the settings too: before, nothing is trained,
and a setting that has changed cannot be told from one that was meant.

Every story becomes a line of runs/chaos.jsonl; stopped, the benchmark goes on where it was. The summary is
results/chaos.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import HERE, RESULTS, engine, machine, write_json
from faults import DAMAGES, LOST, damage, fill_disk
from launching import IN_A_WRITE, INSTANTS, NO_SPACE, End, live
from rich.console import Console
from rich.table import Table
from training_runs import differences, finish, kill_and_resume, start

from hfp.experiment.run import RunFolder

SMALL = ["--target-macs", "0.4", "--image-size", "16", "--batch-size", "128", "--dense-epochs", "2"]
SETTINGS = {
    "plain": [*SMALL, "--prune-epochs", "2", "--finetune-epochs", "2"],
    "control": [*SMALL, "--prune-epochs", "2", "--finetune-epochs", "1", "--control", "--distill", "0.5", "--amp",
                "--channels-last"],
    "floor": [*SMALL, "--prune-epochs", "3", "--finetune-epochs", "1", "--accuracy-floor", "0.3", "--method", "ggp"],
}  # fmt: skip
FULL_DISK = "full disk"
COUNTS = {
    **dict.fromkeys(INSTANTS, 25), "SIGKILL": 60,
    **dict.fromkeys(IN_A_WRITE, 20), "SIGKILL in a write": 55,
    NO_SPACE: 25, FULL_DISK: 30, "truncated": 20, "bits flipped": 20, "block of zeros": 10, LOST: 10,
}  # fmt: skip
"""Of 300."""
FAULTS = 5  # in a story
SPREAD = 2.0  # of what a run does in peace, this much is shared out between them: some meet a run that is done
CODES = {"SIGKILL": -9, "SIGTERM": 143, "Ctrl-C": 130, "SIGKILL in a write": -9, "SIGTERM in a write": 143, NO_SPACE: 1,
         FULL_DISK: 1}  # fmt: skip
DISK = 8 * 2**20
TRIES = 8


@dataclass(frozen=True)
class Peace:
    """A run without faults: its folder, and how much of it there is to hit."""

    folder: Path
    seconds: float
    """Of processor time."""
    steps: int
    """Of writing files."""


@dataclass
class Story:
    """One run and what it has met so far."""

    folder: Path
    settings: list[str]
    peace: Peace
    draws: random.Random
    ballast: Path | None = None
    """What fills the disk, if it can be filled."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """A row for each fault: kind, file, outcome."""
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    whole: dict[Path, tuple[bytes, bytes | None]] = field(default_factory=dict)
    """Files that were damaged: what was in them, and what is (None: lost)."""

    def live(self, kind: str = "", at: float = 0.0) -> End:
        """The run goes on, until the fault or its end. What it says of damage goes into the rows of the damage."""
        self.forget_replaced()
        end = self._cramped(int(at)) if kind == FULL_DISK else live(self.folder, self.settings, kind, at)
        if end.code == 2:
            self._restore(end)
        for row in self.rows:
            if row["outcome"] == "not seen" and row["file"] in end.told_of_damage():
                row["outcome"] = "put right"
        return end

    def _cramped(self, free: int) -> End:
        """On a disk with `free` bytes left; where none can be filled, with files that may not grow so large."""
        if self.ballast is None:
            end = live(self.folder, self.settings, size_limit=free // 4)
        else:
            fill_disk(self.ballast, free)
            try:
                end = live(self.folder, self.settings)
            finally:
                self.ballast.unlink()
        return End(end.code, end.printed, end.seconds, end.steps, hit=end.code != 0)

    def forget_replaced(self) -> None:
        """Of what was damaged, only what is still there as it was left can be put back."""
        self.whole = {path: (content, left) for path, (content, left) in self.whole.items() if _bytes(path) == left}

    def _restore(self, end: End) -> None:
        """The run was refused: the file that it names is put back, once it is seen that it was left as it is."""
        said = end.printed.partition("error: ")[2].strip()
        named = [path for path in self.whole if str(path) in said]
        if not named:
            self.wrong.append(f"refused for no reason: {end.printed[-600:]}")
        for path in named:
            content, left = self.whole.pop(path)
            if _bytes(path) != left:
                self.wrong.append(f"{path.name} was refused and yet changed")
            path.write_bytes(content)
            for row in self.rows:
                if row["file"] == path.name and row["outcome"] == "not seen":
                    row |= {"outcome": "refused", "said": said[:300]}

    def epochs(self) -> int | None:
        """How many epochs are safe; None where resuming would be refused."""
        run = RunFolder(self.folder, {})
        if not run.begun:
            return 0
        try:
            state = RunFolder.resume(self.folder).state
        except ValueError:
            return None
        return 0 if state is None else len(state["lines"])


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


# ---------------------------------------------------------------------------------------------- faults


def strike(story: Story, kind: str) -> None:
    """A fault of the process, and what has to hold after it."""
    share = story.draws.random() * SPREAD / FAULTS
    at = {FULL_DISK: 2.5e6, **dict.fromkeys(INSTANTS, story.peace.seconds)}.get(kind, story.peace.steps) * share
    for _ in range(TRIES):
        before = story.epochs()
        end = story.live(kind, at)
        if end.code == 2:
            continue  # for earlier damage, which is put right now
        if end.hit:
            break
        at /= 2  # it had ended before
    row = {"kind": kind, "file": "", "at": round(at, 3), "outcome": "went on" if end.hit else "missed"}
    story.rows.append(row | {"step": end.step})
    after = story.epochs()
    if end.hit and end.code not in (CODES[kind], 0):
        story.wrong.append(f"{kind} ended with exit code {end.code}: {end.printed[-1500:]}")
    if before is not None and (after is None or after < before):
        story.lost.append(f"{kind}: {before} epochs were safe, and {after} are")
    lines = len(RunFolder(story.folder, {}).lines())
    if after is not None and not story.whole and lines > after + 1:
        story.lost.append(f"{kind}: {lines} epochs were run, and {after} are safe")


def spoil(story: Story, kind: str) -> None:
    """The run is killed, and a file is damaged while nobody writes it."""
    story.live("SIGKILL", story.draws.random() * SPREAD / FAULTS * story.peace.seconds)
    weights = [path for path in story.folder.glob("*.safetensors") if path.name != "damaged.safetensors"]
    others = [path for path in story.folder.glob("[a-z]*.json*") if path.name != "config.json" or weights]
    checkpoint = [path for path in weights if path.name == "checkpoint.safetensors"]
    files = sorted({*weights, *others}) + 3 * checkpoint  # what counts is hit most
    if not files:
        story.rows.append({"kind": kind, "file": "", "outcome": "missed"})
        return
    path, before = story.draws.choice(files), story.epochs()
    story.forget_replaced()
    content = damage(path, kind, story.draws)
    left = _bytes(path)
    content, _ = story.whole.get(path, (content, left))
    story.whole[path] = content, left
    story.rows.append({"kind": kind, "file": path.name, "outcome": "not seen" if left != content else "no change"})
    after = story.epochs()
    if before is not None and after is not None and after < before - 1:
        story.lost.append(f"{path.name} {kind}: {before} epochs were safe, and {after} are")


# ---------------------------------------------------------------------------------------------- stories


def tell(number: int, seed: int, kinds: list[str], peaces: dict[str, Peace], disk: Path, small: bool) -> dict[str, Any]:
    """One story from beginning to end, as a row."""
    begin = time.perf_counter()
    name = list(SETTINGS)[number % len(SETTINGS)]
    draws = random.Random(f"{seed}/{number}")
    ballast = disk / "ballast" if small else None
    story = Story(disk / f"story-{number}", SETTINGS[name], peaces[name], draws, ballast)
    for kind in kinds:
        if kind in DAMAGES or kind == LOST:
            spoil(story, kind)
        else:
            strike(story, kind)
    for _ in range(2 + len(story.whole)):  # once more after each file that is put back
        end = story.live()
        if end.code != 2:
            break
    if end.code:
        story.wrong.append(f"the run does not end: exit code {end.code}, {end.printed[-1500:]}")
        apart = ["everything"]
    else:
        apart = differences(story.peace.folder, story.folder)
    shutil.rmtree(story.folder)
    return {
        "story": number,
        "settings": name,
        "faults": story.rows,
        "differences": apart,
        "lost": story.lost,
        "wrong": story.wrong,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def deal(count: int, seed: int) -> list[list[str]]:
    """The faults of every story: kinds in the proportions of COUNTS, shuffled."""
    deck = [kind for kind, share in COUNTS.items() for _ in range(share)]
    draws = random.Random(seed)
    draws.shuffle(deck)
    deck = (deck * (1 + count // len(deck)))[:count]
    return [deck[begin : begin + FAULTS] for begin in range(0, count, FAULTS)]


def in_peace(name: str, parent: Path) -> Peace:
    end = live(parent / name, SETTINGS[name])
    assert end.code == 0, end.printed
    return Peace(parent / name, end.seconds, end.steps)


def whole_processes(peace: Peace, parent: Path, kills: int, seed: int) -> dict[str, Any]:
    """The same with processes of their own, which are killed at random instants; and one that is left in peace."""
    begin = time.perf_counter()
    finish(start(parent / "peaceful", SETTINGS["plain"]))
    seconds = time.perf_counter() - begin
    done = kill_and_resume(
        parent / "hunted", SETTINGS["plain"], kills, (0.4 * seconds, 0.9 * seconds), random.Random(seed)
    )
    apart = [*differences(peace.folder, parent / "peaceful"), *differences(peace.folder, parent / "hunted")]
    return {"kills": done, "seconds_in_peace": round(seconds, 1), "differences": apart}


# ---------------------------------------------------------------------------------------------- all of them


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    faults = [fault for row in rows for fault in row["faults"]]
    kinds = {kind: Counter(fault["outcome"] for fault in faults if fault["kind"] == kind) for kind in COUNTS}
    files = {kind: Counter(fault["file"] for fault in faults if fault["kind"] == kind) for kind in (*DAMAGES, LOST)}
    return {
        "stories_by_engine": dict(Counter(row["engine"] for row in rows)),
        "faults": sum(fault["outcome"] not in ("missed", "no change") for fault in faults),
        "differences": sum(bool(row["differences"]) for row in rows),
        "losses": sum(len(row["lost"]) for row in rows),
        "wrong_ends": sum(len(row["wrong"]) for row in rows),
        "by_kind": {kind: dict(sorted(outcomes.items())) for kind, outcomes in kinds.items() if outcomes},
        "damaged_files": {kind: dict(found.most_common()) for kind, found in files.items()},
        "steps_of_writes": dict(Counter(fault["step"] for fault in faults if fault.get("step")).most_common()),
        "failures": [row for row in rows if row["differences"] or row["lost"] or row["wrong"]],
        "refusals": sorted({fault["said"] for fault in faults if "said" in fault})[:20],
        "stories": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def show(result: dict[str, Any]) -> None:
    outcomes = ["went on", "put right", "refused", "not seen", "missed"]
    table = Table("fault", *outcomes, title=f"{result['faults']} faults in {result['stories']} runs")
    for kind, found in result["by_kind"].items():
        table.add_row(kind, *(str(found.get(outcome, "")) for outcome in outcomes))
    Console(width=120).print(table)
    print(*(f"{name}: {result[name]}" for name in ("differences", "losses", "wrong_ends")), sep="\n")


def recorded(path: Path, seed: int, also: list[str]) -> dict[int, dict[str, Any]]:
    """The stories that are told already, by this engine; and those without a failure by engines that count as well."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # half a line, of a benchmark that was killed
            continue
        good = not (row["differences"] or row["lost"] or row["wrong"])
        if row["seed"] == seed and (row["engine"] == engine() or (row["engine"] in also and good)):
            rows[row["story"]] = row
    return rows


def small_disk(folder: Path) -> bool:
    """Mount one there, if this system lets us."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=310, help="some of them miss")
    parser.add_argument("--kills", type=int, default=5, help="of processes of their own, besides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--story", type=int, help="this story only, with all that there is to see")
    parser.add_argument(
        "--also", action="append", default=[], metavar="ENGINE",
        help="stories without a failure by this engine stay as they are: after a bug is mended",
    )  # fmt: skip
    parser.add_argument("--record", type=Path, default=HERE.parent / "runs" / "chaos.jsonl")
    parser.add_argument("--output", type=Path, default=RESULTS / "chaos.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    deck, own = deal(given.faults, given.seed), {"engine": engine(), "seed": given.seed}
    given.record.parent.mkdir(parents=True, exist_ok=True)
    rows = recorded(given.record, given.seed, given.also)
    with tempfile.TemporaryDirectory() as temporary:
        peaceful, disk = Path(temporary) / "peaceful", Path(temporary) / "disk"
        disk.mkdir()
        small = small_disk(disk)
        try:
            peaces = {name: in_peace(name, peaceful) for name in SETTINGS}
            if given.story is not None:
                print(json.dumps(tell(given.story, given.seed, deck[given.story], peaces, disk, small), indent=1))
                return 0
            with given.record.open("a") as record:
                for number, kinds in enumerate(deck):
                    if number in rows:
                        continue
                    rows[number] = row = own | tell(number, given.seed, kinds, peaces, disk, small)
                    record.write(f"\n{json.dumps(row)}\n")
                    record.flush()
                    failed = {key: row[key] for key in ("differences", "lost", "wrong") if row[key]}
                    print(f"story {number}: {row['seconds']} s, {failed or 'equal'}", flush=True)
            processes = whole_processes(peaces["plain"], Path(temporary), given.kills, given.seed)
        finally:
            if small:
                subprocess.run(["umount", str(disk)], check=True)
    result: dict[str, Any] = {
        "machine": machine(),
        "seed": given.seed,
        "settings": SETTINGS,
        "disk": f"tmpfs of {DISK} bytes" if small else "a limit on the size of files",
        **summary([rows[number] for number in range(len(deck))]),
        "whole_processes": processes,
    }
    write_json(given.output, result)
    show(result)
    return 1 if result["failures"] or processes["differences"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
