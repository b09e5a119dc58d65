from __future__ import annotations

import pytest

from commands import ROOT, SUPPORT, RunCli


@pytest.mark.long
def test_a_jobs_life_changes_nothing(run_cli: RunCli) -> None:
    paths = {"PYTHONPATH": f"{ROOT}:{SUPPORT}", "SECONDS_OF_A_STEP": "0.3"}
    done = run_cli("rehearse", str(SUPPORT / "slow_steps.py"), "--steps", "4", env=paths)
    assert done.code == 0, done.out + done.err
    acts = [line.split("  ")[0] for line in done.out.splitlines()[1:]]
    assert acts == [
        "warned before the time is up: saves and stops",
        "started again, then kill -9",
        "started again, to the end",
        "ends like the unbroken run",
    ]
    assert "weights and metrics.jsonl equal to the bit" in done.out
