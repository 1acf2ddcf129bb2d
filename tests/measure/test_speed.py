"""The timer's turns, by a clock that the test turns."""

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
