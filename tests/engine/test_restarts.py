"""Deaths in, decisions out."""

from weft.engine.restarts import GiveUp, Restart, Restarts


def test_every_death_within_the_window_costs_a_longer_pause() -> None:
    restarts = Restarts(most=8, window_s=600)
    pauses = [restarts.died(float(second)) for second in range(8)]
    assert pauses == [
        Restart(pause_s, number, 8)
        for number, pause_s in enumerate((0.5, 1, 2, 4, 8, 16, 30, 30), start=1)
    ]


def test_too_many_deaths_within_the_window_end_it() -> None:
    restarts = Restarts(most=2, window_s=600)
    found = [restarts.died(now) for now in (0.0, 300.0, 600.0)]
    assert found == [
        Restart(0.5, 1, 2),
        Restart(1.0, 2, 2),
        GiveUp("the worker died 3 times within 600 s"),
    ]


def test_deaths_long_ago_are_forgotten() -> None:
    restarts = Restarts(most=2, window_s=600)
    found = [restarts.died(now) for now in (0.0, 500.0, 601.0, 1102.0)]
    assert found == [
        Restart(0.5, 1, 2),
        Restart(1.0, 2, 2),
        Restart(1.0, 2, 2),
        Restart(1.0, 2, 2),
    ]


def test_nothing_is_started_again_where_that_is_not_wanted() -> None:
    assert Restarts(most=0).died(5.0) == GiveUp("the worker died 1 times within 600 s")
