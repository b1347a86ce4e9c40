"""Claims, deaths, steals and duplicates, without Ray: the ledger is driven as engines and driver would drive it."""

from __future__ import annotations

from collections.abc import Sequence

from batch_jobs.engines.base import EngineLimits
from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.window import Window
from batch_jobs.reporting.stats import RowStat
from batch_jobs.work.engine_life import LOST_S, Patience
from batch_jobs.work.ledger import CRASHED, MAX_DEATHS_WITHOUT_COMMIT, Ledger
from batch_jobs.work.messages import Copy, EngineReport, Work


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def row(number: int, key: bytes | None = None) -> Prepared:
    return Prepared(number, b"payload", f"prompt {number}", 10.0, 10.0, key)


def ledger_of(count: int, *, engines: int = 2, close: bool = True, **options: object) -> Ledger:
    ledger = Ledger(Window(1000, 1 << 20), engines, **options)  # type: ignore[arg-type]
    ledger.offer([row(number) for number in range(count)])
    if close:
        ledger.close()
    return ledger


def start(ledger: Ledger, engine: str, running: int = 4, pool: str = "p", seat: str | None = None) -> None:
    ledger.register(engine, pool, seat or f"seat of {engine}")
    ledger.ready(engine, EngineLimits(running), 1.0)


def take(ledger: Ledger, engine: str, want: int, seconds: float = 0.0) -> list[Work]:
    limits = ledger.engines[engine].limits
    assert limits is not None
    return ledger.exchange(engine, EngineReport(want, seconds, limits.max_running, 2 * limits.max_running)).work


def numbers(work: Sequence[Work]) -> list[int]:
    return [each.number for each in work]


def commit(ledger: Ledger, engine: str, work: Sequence[Work], part: str = "part") -> None:
    assert ledger.refused(engine, numbers(work)) == []
    stats = [RowStat(w.number, f"id{w.number}", 1, 0, 1, w.error, 0.1, w.copy is not None) for w in work]
    ledger.committed(engine, part, stats)


def test_rows_go_out_once_and_the_job_is_done_when_all_are_committed() -> None:
    ledger = ledger_of(6)
    start(ledger, "a")
    start(ledger, "b")
    first, second = take(ledger, "a", 4), take(ledger, "b", 4)
    assert sorted(numbers(first) + numbers(second)) == list(range(6))
    commit(ledger, "a", first)
    assert not ledger.done
    commit(ledger, "b", second)
    assert ledger.done and ledger.exchange("a", EngineReport(1)).done


def test_a_job_is_not_done_while_more_rows_may_come() -> None:
    ledger = ledger_of(1, close=False)
    start(ledger, "a")
    commit(ledger, "a", take(ledger, "a", 4))
    assert not ledger.done
    ledger.close()
    assert ledger.done


def test_a_part_of_an_engine_that_lost_its_rows_is_refused_as_a_whole() -> None:
    ledger = ledger_of(4)
    start(ledger, "a", seat="s")
    work = take(ledger, "a", 4)
    ledger.register("a2", "p", "s")  # the seat's next process: the first is dead, or as good as dead
    assert ledger.refused("a", numbers(work)) == numbers(work)
    assert ledger.exchange("a", EngineReport(1)).lost
    ledger.ready("a2", EngineLimits(4), 1.0)
    assert sorted(numbers(take(ledger, "a2", 9))) == [0, 1, 2, 3]


def test_an_engine_that_falls_silent_loses_its_rows() -> None:
    clock = Clock()
    ledger = ledger_of(2, clock=clock)
    start(ledger, "a")
    take(ledger, "a", 2)
    clock.now_s = LOST_S - 1
    assert ledger.lose_stuck() == []
    clock.now_s = LOST_S + 1
    assert [life.id for life in ledger.lose_stuck()] == ["a"]
    start(ledger, "b")
    assert sorted(numbers(take(ledger, "b", 2))) == [0, 1]


def test_an_engine_that_finishes_nothing_or_never_comes_up_is_given_up() -> None:
    clock = Clock()
    ledger = ledger_of(2, clock=clock, patience=Patience(start_s=10, stall_s=100))
    start(ledger, "a")
    take(ledger, "a", 2)
    ledger.register("b", "p", "other")
    clock.now_s = 11
    assert [life.id for life in ledger.lose_stuck()] == ["b"]
    for clock.now_s in (50, 100, 101):
        ledger.exchange("a", EngineReport(0))  # it talks, but no row of it ends
    assert [life.id for life in ledger.lose_stuck()] == ["a"]
    start(ledger, "c")
    assert len(take(ledger, "c", 2)) == 2


def test_the_last_rows_are_started_by_engines_whose_cache_holds_few() -> None:
    """Places for 256, KV cache for 20: each engine must not think itself slower than the other."""
    ledger = ledger_of(15)
    for name in ("a", "b"):
        start(ledger, name, 256)
        ledger.exchange(name, EngineReport(0, 5.0, 20, 40))
    given = [ledger.exchange(name, EngineReport(40, 5.0, 20, 40)).work for name in ("a", "b")]
    assert sum(map(len, given)) == 15


def test_rows_that_are_being_committed_are_not_taken_back() -> None:
    ledger = ledger_of(3)
    start(ledger, "a")
    work = take(ledger, "a", 3)
    ledger.publishing(numbers(work)[:2])
    ledger.exchange("a", EngineReport(0, 1.0, 4, 8, returned=tuple(numbers(work))))
    assert sorted(ledger.engines["a"].held) == sorted(numbers(work)[:2])
    assert ledger.refused("a", [numbers(work)[0], numbers(work)[0]]), "a part may not hold a row twice"


def test_copies_and_error_rows_stay_what_they_are_when_their_engine_dies() -> None:
    ledger = Ledger(Window(1000, 1 << 20), 1)
    same = b"k" * 16
    ledger.offer([row(0, same), row(1, same)])
    start(ledger, "a", seat="s")
    commit(ledger, "a", take(ledger, "a", 1))
    (copy,) = take(ledger, "a", 1)
    for life in range(4):
        start(ledger, f"b{life}", seat="s")
        assert take(ledger, f"b{life}", 9) == [copy]


def test_the_row_that_kills_engines_is_found_and_the_others_finish() -> None:
    """One engine of 64 places, one deadly row; every death takes what the engine held."""
    poison = 17
    ledger = ledger_of(200, engines=1)
    deaths, finished = 0, set()
    engine = 0
    start(ledger, "e0", 64, seat="s")
    for _ in range(2000):
        if ledger.done:
            break
        held = take(ledger, f"e{engine}", 64)
        if any(work.number == poison and work.error is None for work in held):
            deaths += 1
            engine += 1
            start(ledger, f"e{engine}", 64, seat="s")
            continue
        for work in held:
            finished.add(work.number)
            assert (work.error == CRASHED) == (work.number == poison)
        commit(ledger, f"e{engine}", held)
    assert ledger.done and ledger.failure is None
    assert finished == set(range(200))
    # Two in the crowd (64), then 8, then 1 at a time.
    assert deaths <= 5


def test_a_row_that_was_there_at_one_death_goes_back_among_the_others() -> None:
    ledger = ledger_of(20)
    start(ledger, "a", 8, seat="s")
    take(ledger, "a", 8)
    start(ledger, "a2", 16, seat="s")
    assert len(take(ledger, "a2", 16)) == 16


def test_suspects_run_apart() -> None:
    ledger = ledger_of(30, engines=1)
    for life in range(2):
        start(ledger, f"a{life}", 16, seat="s")
        take(ledger, f"a{life}", 16)
    start(ledger, "a2", 16, seat="s")
    group = take(ledger, "a2", 16)
    assert len(group) == 2, "an eighth of the sixteen that were there at the second death"
    assert take(ledger, "a2", 14) == [], "nobody joins them"
    commit(ledger, "a2", group)
    assert len(take(ledger, "a2", 16)) == 2


def test_engines_that_die_without_ever_finishing_a_row_end_the_job() -> None:
    ledger = ledger_of(1000, engines=1)
    for life in range(MAX_DEATHS_WITHOUT_COMMIT + 3):
        start(ledger, f"a{life}", 512, seat="s")
        take(ledger, f"a{life}", 512)
    assert ledger.failure is not None and "memory" in ledger.failure
    assert ledger.exchange(f"a{life}", EngineReport(1)).stop


def test_a_duplicate_waits_for_the_first_and_copies_its_answer() -> None:
    ledger = Ledger(Window(1000, 1 << 20), 1)
    same = b"k" * 16
    ledger.offer([row(0, same), row(1, same), row(2)])
    start(ledger, "a")
    work = take(ledger, "a", 9)
    assert sorted(numbers(work)) == [0, 2] and ledger.waiting == 1
    commit(ledger, "a", work, "part-1")
    (copy,) = take(ledger, "a", 9)
    assert copy.number == 1 and copy.copy == Copy("part-1", numbers(work).index(0), "id0")
    commit(ledger, "a", [copy], "part-2")
    ledger.offer([row(3, same)])  # long after
    (late,) = take(ledger, "a", 9)
    assert late.copy == copy.copy
    commit(ledger, "a", [late])
    ledger.close()
    assert ledger.done


def test_the_leader_of_duplicates_may_die() -> None:
    ledger = Ledger(Window(1000, 1 << 20), 1)
    same = b"k" * 16
    ledger.offer([row(0, same), row(1, same)])
    ledger.close()
    start(ledger, "a", seat="s")
    assert numbers(take(ledger, "a", 9)) == [0]
    start(ledger, "b", seat="s")
    again = take(ledger, "b", 9)
    assert numbers(again) == [0]
    commit(ledger, "b", again)
    assert numbers(take(ledger, "b", 9)) == [1]


def test_without_deduplication_every_row_is_computed() -> None:
    ledger = Ledger(Window(1000, 1 << 20), 1, dedupe=False)
    ledger.offer([row(0, b"k" * 16), row(1, b"k" * 16)])
    start(ledger, "a")
    assert len(take(ledger, "a", 9)) == 2


def test_rows_that_a_slow_engine_has_not_started_are_stolen_at_the_end() -> None:
    ledger = ledger_of(12)
    start(ledger, "slow", 2)
    start(ledger, "fast", 2)
    assert len(take(ledger, "slow", 10)) == 10
    fast = take(ledger, "fast", 4, seconds=1.0)
    commit(ledger, "fast", fast)
    assert take(ledger, "fast", 4, seconds=1.0) == []  # nothing waits: the ledger asks the slow one for some
    orders = ledger.exchange("slow", EngineReport(0, 10.0, 2, 4))
    assert 1 <= orders.recall <= 8
    back = tuple(list(ledger.engines["slow"].held)[2:][-orders.recall :])
    ledger.exchange("slow", EngineReport(9, 10.0, 2, 4, returned=back))
    assert sorted(numbers(take(ledger, "fast", 10, seconds=1.0))) == sorted(back)


def test_a_slow_engine_gets_no_row_that_the_fast_ones_finish_sooner() -> None:
    ledger = ledger_of(3)
    start(ledger, "slow", 4)
    start(ledger, "fast", 4)
    assert take(ledger, "fast", 1, seconds=1.0) != []
    assert take(ledger, "slow", 4, seconds=100.0) == []
    assert len(take(ledger, "fast", 3, seconds=1.0)) == 2


def test_stop_asks_everyone_to_stop() -> None:
    ledger = ledger_of(3)
    start(ledger, "a")
    ledger.stop()
    assert ledger.exchange("a", EngineReport(4)).stop
