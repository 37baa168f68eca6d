"""The live table of the demo."""

from weft.engine.demo.progress import Progress, Row


def test_the_table_shows_phase_steps_and_a_smoothed_value() -> None:
    progress = Progress([Row("sums", "RL", "reward"), Row("lines", "SFT", "loss")])
    progress.add_step("sums", 0.0)
    progress.add_step("sums", 1.0)
    progress.set_phase("lines", "measuring")
    assert progress.table(7.0) == [
        "   7 s  method  phase      steps  last ten",
        "sums    RL      training   2      reward 0.50",
        "lines   SFT     measuring  0      loss -",
    ]


def test_the_value_is_the_mean_of_the_last_ten_steps() -> None:
    progress = Progress([Row("sums", "RL", "reward")])
    for step in range(20):
        progress.add_step("sums", float(step >= 10))
    assert progress.line(3.0) == "   3 s  steps: sums 20 (reward 1.00)"


def test_waiting_ends_when_the_demo_does() -> None:
    progress = Progress([])
    assert not progress.wait(0.0)
    progress.finish()
    assert progress.wait(60.0)
