"""The timer's turns, by a clock that the test turns."""

import pytest
import torch

from hf_tokaccel.measure import speed


def test_quick_functions_are_called_several_times_in_a_turn():
    now, calls = [0.0], []

    def taking(seconds, name):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    times = speed.seconds_interleaved(
        [taking(0.25, "quick"), taking(2.0, "slow")], rounds=2, warmup=1, clock=lambda: now[0], shortest=1.0
    )
    assert times == [[0.25, 0.25], [2.0, 2.0]]
    assert calls == ["quick", "slow", *(2 * [*(4 * ["quick"]), "slow"])]


def test_calls_in_a_row_are_waited_for_once(monkeypatch):
    now, waited = [0.0], []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(speed, "_synchronize", lambda device: waited.append(now[0]))

    def call():
        now[0] += 0.5

    assert speed.seconds_in_a_row(call, 4, torch.device("xpu")) == 0.5
    assert waited == [0.0, 2.0]


def test_warming_up_lasts_as_long_as_it_should(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 0.2
        calls.append(now[0])

    speed.warm_up([call, call], torch.device("cpu"), 0.5)
    assert calls == pytest.approx([0.2, 0.4, 0.6, 0.8])
