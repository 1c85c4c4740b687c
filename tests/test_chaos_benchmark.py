"""One story of the chaos benchmark, and that the benchmark notices what it is there to notice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import chaos
import faults
import pytest

from hfp import files


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> chaos.Peace:
    return chaos.in_peace("plain", tmp_path_factory.mktemp("peaceful"))


def told(kinds: list[str], peace: chaos.Peace, folder: Path, seed: int = 0) -> dict[str, Any]:
    return chaos.tell(0, seed, kinds, {"plain": peace}, folder, small=False)


def test_a_run_that_meets_many_faults_ends_as_one_left_in_peace(peace: chaos.Peace, tmp_path: Path) -> None:
    kinds = ["SIGKILL in a write", "SIGTERM", "bits flipped", chaos.NO_SPACE, chaos.FULL_DISK, "truncated"]
    row = told(kinds, peace, tmp_path)
    assert (row["differences"], row["lost"], row["wrong"]) == ([], [], [])
    assert len(row["faults"]) == 6 and not list(tmp_path.iterdir())


def test_a_write_that_is_not_atomic_is_found_out(
    peace: chaos.Peace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: Path, data: bytes, *, before: Path | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.open(path, "wb") as file:  # type: ignore[attr-defined]  # as the benchmark installs it
            file.write(data)

    monkeypatch.setattr("hfp.files.atomic_write", careless)
    monkeypatch.setattr("hfp.experiment.run.atomic_write", careless)
    rows = (told(["SIGKILL in a write"] * 5, peace, tmp_path, seed) for seed in range(6))  # some hit where it matters
    assert any(row["lost"] or row["wrong"] or row["differences"] for row in rows)


def test_a_run_that_ends_otherwise_is_found_out(peace: chaos.Peace, tmp_path: Path) -> None:
    settings = [*chaos.SETTINGS["plain"], "--seed", "1"]
    end = chaos.live(tmp_path / "other", settings)
    assert end.code == 0
    assert "dense.safetensors: fc1.weight" in chaos.differences(peace.folder, tmp_path / "other")


def test_damage_is_damage() -> None:
    draws, content = random.Random(0), random.Random(1).randbytes(10_000)
    for kind, spoil in faults.DAMAGES.items():
        assert all(spoil(content, draws) != content for _ in range(20)), kind


def test_the_faults_are_dealt_in_their_proportions() -> None:
    deck = chaos.deal(300, seed=0)
    assert sorted(sum(deck, [])) == sorted(kind for kind, count in chaos.COUNTS.items() for _ in range(count))
    assert sum(chaos.COUNTS.values()) == 300 and {len(story) for story in deck} == {chaos.FAULTS}
