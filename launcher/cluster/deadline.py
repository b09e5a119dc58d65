"""Deadline by which a run must have saved and ended, set by the user or by the scheduler."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Mapping

from launcher.errors import UserError

_LATER = re.compile(r"\+(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def read_deadline(text: str | None, environ: Mapping[str, str]) -> float | None:
    """Return the deadline as Unix time in seconds, or None without one.

    It is read from `text` ("2026-05-01T18:30", "18:30" today, "+2h30m" from now). Without `text` it is the end of the
    SLURM allocation, if SLURM reports it (SLURM_JOB_END_TIME, since 23.02).

    Raises:
        UserError: `text` is of another form, or names a time that is past.
    """
    if text is None:
        end = environ.get("SLURM_JOB_END_TIME", "")
        return float(end) if end.isdigit() else None
    later = _LATER.fullmatch(text)
    if later and any(later.groups()):
        hours, minutes, seconds = (int(part or 0) for part in later.groups())
        return time.time() + 3600 * hours + 60 * minutes + seconds
    now = datetime.datetime.now()
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text):
            at = datetime.datetime.fromisoformat(f"{now:%Y-%m-%d}T{text:0>5}")
        else:
            at = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"--stop-at {text!r}: write a time (18:30, 2026-05-01T18:30) or a duration (+2h30m)") from error
    if at.timestamp() <= now.timestamp():
        raise UserError(f"--stop-at {text!r}: is past (it is {now:%Y-%m-%dT%H:%M}); write a time to come, or +2h30m")
    return at.timestamp()
