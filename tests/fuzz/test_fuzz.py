"""The corpus, all of it, and a second of fuzzing a decoder; see fuzz.py for more of that."""

from pathlib import Path

import fuzz
import pytest
from fuzz import CORPUS, TARGETS, Target, seeds_of, words, wrong_with

SEED, SECONDS = 1, 1.0


def test_every_folder_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    seeds = seeds_of(name)
    assert seeds
    for payload in seeds:
        if (error := wrong_with(TARGETS[name], payload)) is not None:
            raise AssertionError(f"{payload!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing(name: str) -> None:
    tried, finding = fuzz.fuzz(name, SEED, SECONDS)
    assert tried > 100
    if finding is not None:
        raise AssertionError(f"seed {SEED}, input {tried}: {finding.payload!r}") from finding.error


# --- the fuzzer itself ----------------------------------------------------------------------------


def break_on_x(payload: bytes) -> None:
    if b"[x" in payload:
        raise KeyError("x")


PLANTED = Target(break_on_x, words, [b"x"], [(b"[", b"]")])


def test_what_it_finds_is_minimised_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CORPUS", tmp_path)
    monkeypatch.setitem(TARGETS, "planted", PLANTED)
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "seed").write_bytes(b'{"a": [1, 2], "b": [3]}')
    assert fuzz.campaign("planted", 1, 1.0) == {"KeyError: 'x'"}
    (found,) = folder.glob("found-*")
    assert found.read_bytes() == b"[x"
    assert wrong_with(PLANTED, b"[x") is not None
    assert not list(folder.glob("died-*"))


def test_what_takes_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.05)
    slow = PLANTED._replace(check=lambda payload: [None for _ in range(10_000_000)] and None)
    assert "took" in str(wrong_with(slow, b""))
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 60)
    large = PLANTED._replace(check=lambda payload: b"x" * (fuzz.most_memory() + 2 * fuzz.MAX_GROWTH) and None)
    assert "bytes" in str(wrong_with(large, b""))
