from __future__ import annotations

import signal
from pathlib import Path

from kits.example_kit import Example


def test_a_report_is_written_by_a_worker(redis_url: str, tmp_path: Path) -> None:
    example = Example("nightly_reports", tmp_path, FLUID_BROKER_URL=redis_url)
    with example.start("fluidfast worker reports:manager") as worker:
        example.run("""fluidfast queue reports:manager nightly_report --params '{"day": "2026-11-29"}'""")
        worker.wait_for("wrote reports/2026-11-29.csv")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    [report] = (example.folder / "reports").iterdir()
    assert report.read_text().splitlines()[0] == "day,orders"


def test_it_is_due_at_the_hour_of_its_zone(tmp_path: Path) -> None:
    example = Example("nightly_reports", tmp_path)
    assert example.run("python when.py 2027-01-15").split() == ["2027-01-15T04:30:00+01:00"]
    assert example.run("python when.py 2027-07-15").split() == ["2027-07-15T04:30:00+02:00"]
