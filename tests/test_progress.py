"""What a long command says about how long it takes."""

from __future__ import annotations

import pytest

from annotate.progress import progress


def test_steps_of_an_earlier_run_foretell_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("annotate.progress.time.monotonic", lambda: now)
    with progress("Training", 100) as advance:
        advance(80, before=True)
        for _ in range(10):
            now += 2
            advance(1)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "Training: 85/100  10 s, 30 s left",
        "Training: 90/100  20 s, 20 s left",
        "Training: 90/100  20 s, 20 s left",
    ]
