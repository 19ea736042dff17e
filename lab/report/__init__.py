"""The directory of a run: result, schedule, history, versions, logs, and a page that is looked at rather than read.

`directory` writes the files, `page` the HTML around `timeline`'s drawing, `junit` what CI systems read.
"""

from __future__ import annotations

from lab.report.directory import new_directory, write_report

__all__ = ["new_directory", "write_report"]
