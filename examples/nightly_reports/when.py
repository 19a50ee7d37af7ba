"""Print when the report is due on a day: python when.py 2027-03-28"""

import sys
from datetime import date, datetime, time, timedelta

from reports import BERLIN, nightly_report

schedule = nightly_report.schedule
assert schedule is not None
midnight = datetime.combine(date.fromisoformat(sys.argv[1]), time(), BERLIN)
for minute in range(24 * 60):
    if due := schedule(midnight + timedelta(minutes=minute)):
        print(due.datetime.isoformat())
