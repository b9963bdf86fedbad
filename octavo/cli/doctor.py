"""`octavo doctor`."""

from __future__ import annotations

from octavo.cli import options, show
from octavo.records import DoctorRecord


def doctor(json: options.Json = False, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    from octavo import api

    record = api.doctor()
    show.emit(record, json, lambda: _prose(record))


def _prose(record: DoctorRecord) -> None:
    from octavo.report.text import doctor_summary, write

    write(doctor_summary(record))
