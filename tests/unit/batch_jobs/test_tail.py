"""The end of a job: who gets the last rows, and who loses rows that it has not started."""

from __future__ import annotations

from batch_jobs.work.tail import Pace, grant, steal


def pace(name: str, held: int, seconds: float) -> Pace:
    """An engine that runs 8 rows at once and holds 16."""
    return Pace(name, held, 8, 16, seconds)


def test_asking_again_and_again_gives_no_more_than_the_share() -> None:
    held, waiting = 8, 16
    for want in (8, 6, 5):
        given = grant(pace("slow", held, 3.0), [pace("fast", 16, 1.0)], waiting, want)
        held, waiting = held + given, waiting - given
    # A quarter of the 40 rows that were left, of which it held 8 already.
    assert (held, waiting) == (10, 14)


def test_rows_are_taken_before_the_thief_has_nothing_to_do() -> None:
    assert steal(pace("fast", 8, 1.0), [pace("slow", 16, 3.0)]) == ("slow", 8)


def test_a_thief_takes_no_more_than_lets_both_end_together() -> None:
    assert steal(pace("a", 8, 1.0), [pace("b", 14, 1.0)]) == ("b", 3)
    assert steal(pace("b", 11, 1.0), [pace("a", 11, 1.0)]) is None, "and nothing goes back"


def test_a_slow_engine_takes_nothing_that_the_fast_one_would_finish_sooner() -> None:
    assert steal(pace("slow", 0, 3.0), [pace("fast", 16, 1.0)]) is None


def test_engines_without_a_measured_time_share_by_halves_and_only_when_idle() -> None:
    assert steal(pace("new", 0, 0.0), [pace("old", 14, 0.0)]) == ("old", 3)
    assert steal(pace("new", 8, 0.0), [pace("old", 14, 0.0)]) is None
