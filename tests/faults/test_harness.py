"""The campaign's own tools: the oracle sees what it is for, the proxy cuts where it was told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import campaign
import pytest
import results
from harness import Fleet, until
from kits.servers import RedisServer
from proxy import BACK, THERE, FaultProxy

from fluidfast.commands.trials.ledger import Oracle


def test_the_oracle_tells_the_classes_apart(oracle: Oracle) -> None:
    producer, one, two = oracle.ledger("producer"), oracle.ledger("one"), oracle.ledger("two")
    producer.attempted("good", "lost", "again", "twice", "open", "dead", "no")
    producer.acknowledged("good", "lost", "again", "twice", "dead")
    producer.refused("no")
    for book, id in ((one, "good"), (one, "twice"), (two, "twice"), (two, "again"), (two, "foreign"), (two, "no")):
        if id == "again":
            one.started(id)
        book.started(id)
        book.finished(id)
    verdict = oracle.verdict(["dead"])
    assert verdict.counts() == {
        "attempted": 7, "acknowledged": 5, "refused": 1, "ok": 1, "open": 1,
        "lost": 1, "dead": 1, "unexpected": 2, "duplicated": 1, "recovered": 1,
    }  # fmt: skip
    assert verdict.lost == ["lost"]
    assert verdict.unexplained({"one"}) == []
    assert sorted(verdict.unexplained({"two"})) == ["again", "twice"]
    assert verdict.again_per_process() == {"one": 2}
    with pytest.raises(AssertionError, match="lost 1"):
        verdict.check()
    for book in (producer, one, two):
        book.close()


@pytest.mark.parametrize(("direction", "after"), [(THERE, 0), (THERE, 5), (BACK, 0), (BACK, 3)])
def test_a_cut_is_where_it_was_ordered(redis_server: RedisServer, direction: str, after: int) -> None:
    with FaultProxy(redis_server.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        cut = proxy.cut(direction, after)
        client.sendall(b"PING\r\n")
        received = b""
        while data := client.recv(100):
            received += data
        assert cut.happened
        assert received == (b"+PONG\r\n"[:after] if direction == BACK else b"")
        assert proxy.passed[direction] == (6 if direction == THERE else 7) + after


def test_a_fleet_works_drains_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.workers(2)
    producer = fleet.producer(count=300, priorities=["high", "medium", "low"])
    producer.done()
    fleet.drain()
    fleet.stop()
    verdict = fleet.verdict().check(killed=())
    assert verdict.ok == 300
    fleet.assert_clean()


def figures_of(seed: int, what: str = "killed", form: str = "long") -> dict[str, Any]:
    return {"row": 1, "form": form, "what": what, "seed": seed, "took": 1.5, "values": {"lost": seed}}


def test_the_newest_two_seeds_of_a_scenario_are_kept(tmp_path: Path) -> None:
    data, page = tmp_path / "results.json", tmp_path / "RESULTS.md"

    def seeds_after(*lines: dict[str, Any]) -> list[int]:
        results.write_results(data, page, list(lines), machine="a machine", commit="abc1234")
        return [line["seed"] for line in json.loads(data.read_text())]

    assert seeds_after(figures_of(1)) == [1]
    assert seeds_after(figures_of(2)) == [2, 1]
    assert seeds_after(figures_of(3)) == [3, 2]
    assert seeds_after(figures_of(2)) == [2, 3]
    assert seeds_after(figures_of(2)) == [2, 3]
    assert seeds_after(figures_of(4, "another"), figures_of(5, form="short")) == [4, 2, 3, 5]
    assert seeds_after(figures_of(6, form="short")) == [4, 2, 3, 6]
    rows = [line for line in page.read_text().splitlines() if line.endswith("| abc1234 |")]
    when = rows[0].split(" | ")[-2]
    assert rows == [
        f"| 1 | another | lost 4 | 4 | 1.5 s | {when} | abc1234 |",
        f"| 1 | killed | lost 2 | 2 | 1.5 s | {when} | abc1234 |",
        f"| | | lost 3 | 3 | 1.5 s | {when} | abc1234 |",
        f"| 1 | killed | lost 6 | 6 | 1.5 s | {when} | abc1234 |",
    ]


REPORT = """\
import sys
from pathlib import Path
import results

who, folder = int(sys.argv[1]), Path(sys.argv[2])
sys.stdin.readline()
for number in range(30):
    line = {"row": who, "form": "long", "what": f"{number}", "seed": 1, "took": 0, "values": {}}
    results.write_results(folder / "results.json", folder / "RESULTS.md", [line], machine="a machine")
"""


def test_two_that_report_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REPORT]
    ours = str(Path(results.__file__).parent)
    both = [
        subprocess.Popen([*command, who, str(tmp_path)], stdin=subprocess.PIPE, text=True, cwd=ours) for who in "12"
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(30) for process in both] == [0, 0]
    assert len(json.loads((tmp_path / "results.json").read_text())) == 60
    assert (tmp_path / "RESULTS.md").read_text().count(" s | ") == 60


def test_the_commit_says_when_it_is_not_all(tmp_path: Path) -> None:
    assert results.commit_of(tmp_path / "nothing") == results.commit_of(tmp_path) == ""
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm one"):
        (tmp_path / "code.py").write_text("")
        (tmp_path / "RESULTS.md").write_text("")
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    commit = results.commit_of(tmp_path, "RESULTS.md")
    assert len(commit) >= 7
    (tmp_path / "RESULTS.md").write_text("new")
    assert results.commit_of(tmp_path, "RESULTS.md") == commit
    assert results.commit_of(tmp_path) == f"{commit}-dirty"
    (tmp_path / "code.py").write_text("new")
    assert results.commit_of(tmp_path, "RESULTS.md") == f"{commit}-dirty"


def test_each_long_form_is_in_one_lane() -> None:
    assert list(range(1, 25)) == campaign.ROWS
    found = [path for row in campaign.ROWS for path in campaign.command([row], 7) if path.endswith(".py")]
    here = Path(campaign.__file__).parent
    assert sorted(found) == sorted(map(str, here.glob("test_[0-9]*.py")))
    others = [path for path in here.glob("test_*.py") if "mark." + "soak" in path.read_text()]
    assert {str(path) for path in others} <= set(found)


WAIT_FOR = """
import sys, time
from pathlib import Path
mine, other, code = sys.argv[1:]
Path(mine).touch()
while not Path(other).exists():
    time.sleep(0.01)
print("both are here")
sys.exit(int(code))
"""


def test_lanes_run_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    command = [sys.executable, "-c", WAIT_FOR]
    assert campaign.run_lanes({"one": [*command, a, b, "0"], "two": [*command, b, a, "3"]}) == {"one": 0, "two": 3}
    assert sorted(capsys.readouterr().out.splitlines()) == ["one     | both are here", "two     | both are here"]


LANE = """
import os, subprocess, sys, time
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), started.pid)
try:
    time.sleep(600)
except KeyboardInterrupt:
    if sys.argv[1] == "busy":
        time.sleep(600)  # does not end
    started.kill()
    print("put away")
"""
CAMPAIGN = f"""
import sys, campaign
campaign.END_SECONDS = 0.5
campaign.command = lambda rows, seed: [sys.executable, "-c", {LANE!r}, "busy" if rows == [1] else "waiting"]
sys.exit(campaign.main(["--rows", "1", "6"]))
"""


def test_ctrl_c_ends_the_lanes(tmp_path: Path) -> None:
    """And what they have started, also of one that does not end."""
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", CAMPAIGN], stdout=file, stderr=file, cwd=Path(campaign.__file__).parent
        )
    try:
        until(lambda: out.read_text().count("pids ") == 2, 20, out.read_text)
        pids = [int(pid) for line in out.read_text().splitlines() if "pids " in line for pid in line.split()[-2:]]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
    assert "waiting | put away" in out.read_text()
    assert len(pids) == 4
    for pid in pids:
        until(lambda pid=pid: is_gone(pid), 10, f"{pid} has ended")


def is_gone(pid: int) -> bool:
    """A child of one that has ended may be a zombie where nobody takes it."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_told_to_end_before_it_listens(fleet: Fleet) -> None:
    process = fleet.producer(count=10)
    process.terminate()
    process.done()
    assert any(line.id == "stopped" for line in fleet.oracle.notes(process.who))
