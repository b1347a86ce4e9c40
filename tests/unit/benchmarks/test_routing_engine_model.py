"""The routing benchmark's engines: nothing is lost, times follow the formula, the cache holds what it should."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.routing_sides.engine_model import Engine, ReplicaModel, Served
from benchmarks.routing_sides.metrics import ceiling, figures
from benchmarks.routing_sides.policies import AtOnce, CacheAware, LeastLoaded, Loads, RandomChoice, SessionOnly
from benchmarks.routing_sides.prefix_cache import PrefixCache
from benchmarks.routing_sides.simulation import Simulation
from benchmarks.routing_sides.workload import Load, Request

ENGINE = Engine(slots=4, cache_tokens=6400)
BLOCK = 64


def request(number: int, at_s: float = 0.0, blocks: int = 4, output: int = 10, session: int = 0) -> Request:
    chain = tuple(session * 1000 + place for place in range(blocks))
    return Request(number, "t0", f"s{session}", at_s, blocks * BLOCK + 1, output, chain, (), chain)


def alone(requests: list[Request], engine: Engine = ENGINE) -> list[Served]:
    load = Load([[one] for one in requests], BLOCK, 0.0, 0.0)
    return Simulation(load, AtOnce(LeastLoaded(), 1), engine, 1).run()


def test_a_single_request_takes_what_the_formula_says() -> None:
    (served,) = alone([request(0, at_s=3.0, blocks=40, output=11)])
    step_s = ENGINE.step_s + ENGINE.chunk_tokens / ENGINE.prefill_tokens_per_s
    tokens = 40 * BLOCK + 1 + ENGINE.prompt_s * ENGINE.prefill_tokens_per_s
    assert served.ttft_s == pytest.approx(tokens / ENGINE.chunk_tokens * step_s)
    each_s = ENGINE.step_s + ENGINE.decode_s_a_request
    assert served.finished_at_s - served.first_token_at_s == pytest.approx(10 * each_s)


def test_what_was_computed_is_not_computed_again() -> None:
    first, again, other = alone([request(0), request(1, at_s=9.0, blocks=6), request(2, at_s=18.0, session=1)])
    assert (first.cached_tokens, again.cached_tokens, other.cached_tokens) == (0, 4 * BLOCK, 0)
    assert again.ttft_s < alone([request(0, blocks=6)])[0].ttft_s


def test_prompts_are_prefilled_in_turn_and_slots_are_kept() -> None:
    served = alone([request(n, session=n, output=100) for n in range(9)])
    firsts = [s.first_token_at_s for s in sorted(served, key=lambda s: s.request.number)]
    assert firsts == sorted(firsts) and len(set(firsts)) == 9
    spans = [(s.first_token_at_s, s.finished_at_s) for s in served]
    assert max(sum(a <= at < b for a, b in spans) for at in firsts) == ENGINE.slots


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 3), st.sampled_from(["random", "cache_aware", "session"]))
def test_every_request_ends_once_and_the_cache_never_overflows(seed: int, replicas: int, name: str) -> None:
    rng = random.Random(seed)
    chains = [
        [
            request(100 * chain + n, rng.uniform(0, 30), rng.randint(1, 30), rng.randint(1, 60), rng.randrange(6))
            for n in range(rng.randint(1, 6))
        ]
        for chain in range(12)
    ]
    router = {
        "random": AtOnce(RandomChoice(replicas, seed), replicas),
        "cache_aware": AtOnce(CacheAware(replicas, 0.3, 4, 1.5), replicas),
        "session": SessionOnly(replicas, ENGINE.slots),
    }[name]
    simulation = Simulation(Load(chains, BLOCK, 0.0, 1.0), router, ENGINE, replicas)
    served = simulation.run()
    assert sorted(s.request.number for s in served) == sorted(r.number for chain in chains for r in chain)
    for one in served:
        assert one.request.due_at_s <= one.arrived_at_s <= one.given_at_s < one.first_token_at_s <= one.finished_at_s
        assert 0 <= one.cached_tokens < one.request.prompt_tokens
    for replica in simulation.replicas:
        cache = replica._cache
        assert not cache._pinned and cache._unnamed == 0 and len(cache._idle) <= cache._room
    got = figures(Load(chains, BLOCK, 0.0, 1.0), served, ENGINE, simulation.replicas)
    assert 0 <= got["hit_rate"] < 1 and got["imbalance"] >= 1 and got["ttft_p50_s"] <= got["ttft_p95_s"]


def test_the_next_turn_waits_for_the_answer_and_for_its_reader() -> None:
    chain = [request(0, 0.0, output=400), request(1, 0.5)]
    first, second = Simulation(Load([chain], BLOCK, 0.0, 2.0), AtOnce(LeastLoaded(), 1), ENGINE, 1).run()
    assert second.arrived_at_s == pytest.approx(first.finished_at_s + 2.0) and first.finished_at_s > 0.5


def test_a_request_that_fits_nowhere_is_said() -> None:
    with pytest.raises(ValueError, match="more than the cache"):
        alone([request(0, blocks=200)])


def test_the_ceiling_is_what_one_cache_would_hit() -> None:
    served = alone([request(0), request(1, 50.0), request(2, 100.0, session=1), request(3, 150.0)])
    load = Load([], BLOCK, 0.0, 0.0)
    assert ceiling(load, served, 6400) == pytest.approx(2 * 4 / (4 * 4 + 4 / 64))
    assert ceiling(load, served, 4 * BLOCK) == pytest.approx(4 / (4 * 4 + 4 / 64)), "room for one prompt"
    assert ceiling(replace(load, counted_from_s=120.0), served, 6400) == pytest.approx(4 / (4 + 1 / 64))


def test_of_a_chain_the_end_is_evicted_first() -> None:
    cache = PrefixCache(6)
    assert cache.begin((1, 2, 3, 4), 4) == 0
    cache.computed((1, 2, 3, 4))
    cache.end((1, 2, 3, 4), 0)
    assert cache.fits(6) and cache.begin((9,), 4) == 0
    assert cache.matched((1, 2, 3, 4)) == 2 and not cache.fits(3)


class TestCacheAware:
    def loads(self, *under_way: int) -> Loads:
        loads = Loads(len(under_way))
        loads.of = list(under_way)
        return loads

    def test_it_follows_the_longest_match_above_the_threshold(self) -> None:
        rule = CacheAware(2, 0.5, 32, 1.1)
        assert rule.choose(request(0, blocks=4), self.loads(5, 0)) == 1
        assert rule.choose(request(1, blocks=6), self.loads(0, 9)) == 1, "4 of 6 blocks"
        assert rule.choose(request(2, blocks=16), self.loads(0, 9)) == 0, "6 of 16 blocks"

    def test_unequal_loads_come_first(self) -> None:
        rule = CacheAware(2, 0.5, 32, 1.1)
        assert rule.choose(request(0), self.loads(5, 0)) == 1
        assert rule.choose(request(1), self.loads(10, 42)) == 1, "32 apart is not above 32"
        assert rule.choose(request(2), self.loads(10, 43)) == 0
        assert rule.choose(request(3, session=1), self.loads(400, 433)) == 0, "least loaded, being new"
        assert rule.choose(request(4), self.loads(433, 400)) == 0, (
            "less than a tenth apart; both have it, the first is taken"
        )


def test_sessions_alone_wait_in_one_line() -> None:
    router = SessionOnly(2, 1)
    for number, session in enumerate((1, 2, 1, 3)):
        router.submit(request(number, session=session), 0.0)
    given_to = {r.number: replica for r, replica in router.grants(0.0)}
    assert given_to.keys() == {0, 1} and given_to[0] != given_to[1]
    ended = Served(request(0, session=1), given_to[0], 0.0, 0.0)
    router.finished(ended, 1.0)
    assert [(r.number, replica) for r, replica in router.grants(1.0)] == [(2, given_to[0])]


def test_a_replica_says_when_it_has_news() -> None:
    replica = ReplicaModel(ENGINE, BLOCK)
    assert replica.next_at_s == float("inf")
    replica.give(Served(request(0, output=1), 0, 0.0, 0.0), 0.0)
    assert 0 < replica.next_at_s < float("inf")
    first, ended = replica.step()
    if not ended:  # its only token ends it, now or in an event of its own at the same time
        ended = replica.step()[1]
    assert first is not None and ended == [first] and replica.next_at_s == float("inf")
