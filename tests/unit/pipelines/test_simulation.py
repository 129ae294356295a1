"""The simulation against closed forms, the laws of closed queueing networks, and what the real classes count."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.simulation import cluster as cluster_module
from pipelines.simulation.cluster import Cluster, simulate
from pipelines.simulation.costs import (
    MEASURE_DEPTHWISE,
    MEASURE_POINTWISE,
    Costs,
    Machine,
    Workload,
    all_reduce_rate,
    costs,
)
from pipelines.simulation.events import NEVER, Clock, Pool

COSTS = Costs(
    batch_size=32,
    step=0.100,
    collect=0.001,
    serialise=0.002,
    load=0.003,
    request=0.0005,
    serve=0.0004,
    apply=0.004,
    answer=0.002,
    push_bytes=17e6,
    pull_bytes=16e6,
    gradient_bytes=16e6,
    link_bytes=25e9 / 8,
    latency=0.0002,
)
# Everything but the servers' own work costs nothing.
ONLY_SERVING = replace(
    COSTS, step=1e-6, collect=0, serialise=0, load=0, request=0, latency=0, push_bytes=0, pull_bytes=0
)


def rate(of=COSTS, **cluster):
    return simulate(of, Cluster(**{"jitter": 0.0, **cluster})).images_per_second


def test_one_worker_and_one_server_take_the_sum_of_all_parts():
    parts = (0.100, 0.001, 0.002, 0.0005, 17e6 / 3.125e9, 0.0002, 0.0004, 0.004, 0.002, 16e6 / 3.125e9, 0.0002, 0.003)
    assert rate(workers=1, servers=1) == pytest.approx(32 / sum(parts), rel=1e-9)
    assert COSTS.alone(1) == pytest.approx(sum(parts), rel=1e-12)


def test_slices_to_several_servers_pass_one_another_s_machines_at_once():
    """With two servers: two requests, then the second slice's way, and the replies share the worker's link."""
    slice_out, slice_in = 17e6 / 2 / 3.125e9, 16e6 / 2 / 3.125e9
    prepare = 0.0005 + 0.001
    first_left = prepare + slice_out  # on the link while the second slice is prepared
    second_left = max(2 * prepare, first_left) + slice_out
    served = 0.0004 + 0.002 + 0.001
    first_back = first_left + 0.0002 + served + slice_in
    second_back = max(second_left + 0.0002 + served, first_back) + slice_in
    round_seconds = 0.100 + 0.001 + second_back + 0.0002 + 0.003
    assert rate(workers=1, servers=2) == pytest.approx(32 / round_seconds, rel=1e-9)


@pytest.mark.parametrize("servers", [1, 3])
def test_a_saturated_server_sets_the_rate(servers):
    outcome = simulate(ONLY_SERVING, Cluster(20, servers, jitter=0.0))
    assert outcome.images_per_second == pytest.approx(32 / (0.0004 + 0.006 / servers), rel=1e-6)
    assert outcome.server_busy == pytest.approx(1.0, abs=1e-6)


def test_a_saturated_link_sets_the_rate():
    narrow = replace(COSTS, step=0.010, link_bytes=1e8)
    outcome = simulate(narrow, Cluster(20, 1, jitter=0.0))
    assert outcome.images_per_second == pytest.approx(32 / 0.17, rel=0.01)
    assert outcome.link_busy == pytest.approx(1.0, abs=0.02)


def test_workers_that_do_not_meet_are_as_fast_as_they_are_many():
    slow = replace(COSTS, step=10.0)
    one = rate(slow, workers=1, servers=2)
    assert rate(slow, workers=8, servers=2) == pytest.approx(8 * one, rel=1e-3)


def test_the_cores_of_one_machine_are_shared():
    lone = replace(COSTS, link_bytes=math.inf, latency=0.0)
    one = rate(lone, workers=1, servers=1, cores=2)
    assert one == pytest.approx(32 / lone.alone(1), rel=1e-9)
    assert rate(lone, workers=2, servers=1, cores=8) == pytest.approx(2 * one, rel=0.02)
    # Work is conserved: four workers keep both cores busy, whatever the order.
    assert rate(lone, workers=4, servers=1, cores=2, rounds=40) == pytest.approx(2 * one, rel=0.02)


costs_strategy = st.builds(
    Costs,
    batch_size=st.just(8),
    step=st.floats(0.01, 1.0),
    **{name: st.floats(0.0, 0.05) for name in ("collect", "serialise", "load", "request", "apply", "answer")},
    serve=st.floats(1e-4, 0.01),
    push_bytes=st.floats(0, 1e8),
    pull_bytes=st.floats(0, 1e8),
    gradient_bytes=st.just(1e6),
    link_bytes=st.floats(1e8, 1e10),
    latency=st.floats(0, 0.01),
)


@settings(max_examples=60, deadline=None)
@given(costs_strategy, st.integers(1, 12), st.integers(1, 5), st.sampled_from([0.0, 0.3]), st.integers(0, 9))
def test_the_laws_of_a_closed_network_hold(of, workers, servers, jitter, seed):
    """Denning and Buzen 1978: no more than all workers alone, nor than the busiest resource can serve; and no less
    than if each worker waited for all others at every server in turn.
    """
    outcome = simulate(of, Cluster(workers, servers, jitter=jitter, seed=seed, rounds=30))
    pushes = outcome.images_per_second / of.batch_size
    link = max(of.push_bytes, of.pull_bytes) / servers / of.link_bytes
    least = of.step + of.collect + of.serialise + servers * of.request + of.service(servers) + of.load + 2 * of.latency
    slack = 1.12 + jitter  # of a finite window, whose ends cut rounds
    assert pushes <= slack * min(workers / least, 1 / max(link, of.service(servers)))
    transfers = (of.push_bytes + of.pull_bytes) / of.link_bytes
    most = of.alone(servers) + transfers + (workers - 1) * (of.service(servers) + 2 * transfers / servers)
    assert pushes >= workers / (slack * most)
    assert 0 <= outcome.server_busy <= 1.001
    assert outcome.pushes == outcome.pulls >= servers * workers * 30
    assert outcome.dropped == 0
    assert outcome.staleness == pytest.approx(workers - 1, abs=0.5)


@settings(max_examples=30, deadline=None)
@given(costs_strategy, st.integers(1, 10), st.integers(1, 4), st.sampled_from(["step", "apply", "push_bytes", "load"]))
def test_what_costs_more_is_not_faster(of, workers, servers, name):
    dearer = replace(of, **{name: 2 * getattr(of, name)})
    assert rate(dearer, workers=workers, servers=servers, rounds=30) <= 1.1 * rate(
        of, workers=workers, servers=servers, rounds=30
    )


@settings(max_examples=30, deadline=None)
@given(costs_strategy, st.integers(1, 8), st.integers(1, 4))
def test_more_workers_are_not_slower_and_no_more_than_proportional(of, workers, servers):
    some = rate(of, workers=workers, servers=servers, rounds=30)
    more = rate(of, workers=2 * workers, servers=servers, rounds=30)
    assert 0.9 * some <= more <= 2.2 * some


@pytest.mark.parametrize(("workers", "servers"), [(2, 1), (16, 1), (16, 4), (64, 2)])
def test_gradients_of_equal_workers_are_late_by_all_others(workers, servers):
    outcome = simulate(COSTS, Cluster(workers, servers, rounds=20))
    assert outcome.staleness == pytest.approx(workers - 1, rel=0.05)


def test_a_straggler_costs_asynchronous_training_its_own_part_alone():
    """The others go on; data-parallel training waits for it at every step."""
    healthy, slow = Cluster(4, 2, rounds=60), Cluster(4, 2, rounds=60, slowdowns=(4.0,))
    outcome = simulate(COSTS, slow)
    ratio = outcome.images_per_second / simulate(COSTS, healthy).images_per_second
    own = COSTS.alone(2) / (COSTS.alone(2) + 3 * COSTS.step)
    assert ratio == pytest.approx((3 + own) / 4, rel=0.03)
    straggler, *others = outcome.by_worker
    assert straggler == pytest.approx(own * sum(others) / 3, rel=0.1)
    assert all_reduce_rate(COSTS, 4, 5e-5, slowdown=4.0) == pytest.approx(all_reduce_rate(COSTS, 4, 5e-5) / 4)


def test_waiting_makes_all_as_slow_as_the_slowest():
    slowdowns = (4.0,)
    free = simulate(COSTS, Cluster(4, 2, rounds=60, slowdowns=slowdowns))
    waiting = simulate(COSTS, Cluster(4, 2, rounds=60, slowdowns=slowdowns, policy="wait", max_staleness=3))
    assert max(free.by_worker) > 3 * min(free.by_worker)
    assert max(waiting.by_worker) - min(waiting.by_worker) <= 5  # the lead when counting began, and when it ended
    assert waiting.images_per_second == pytest.approx(4 * 32 / (COSTS.alone(2) + 3 * COSTS.step), rel=0.1)
    assert waiting.pulls > waiting.pushes  # who has waited pulls again


def test_late_gradients_are_dropped_and_no_images_of_theirs_are_counted():
    none = simulate(COSTS, Cluster(8, 1, rounds=40))
    dropping = simulate(COSTS, Cluster(8, 1, rounds=40, policy="drop", max_staleness=5))
    assert none.dropped == 0 < dropping.dropped
    assert dropping.staleness <= 5
    assert dropping.images_per_second < none.images_per_second
    assert dropping.pushes == dropping.pulls


def test_the_same_seed_gives_the_same_outcome():
    first, again, other = (simulate(COSTS, Cluster(6, 2, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_pool_is_first_come_first_served():
    pool = Pool(2)
    assert [pool.take(0, 3), pool.take(0, 1), pool.take(0, 1), pool.take(5, 1)] == [3, 1, 2, 6]
    assert pool.busy == 6


def test_a_clock_wakes_processes_in_order():
    clock, said = Clock(), []

    def sleeper():
        yield NEVER
        said.append(("woken", clock.now))

    def waker(sleeping):
        yield 2.0
        clock.start(sleeping)
        said.append(("woke", clock.now))

    sleeping = sleeper()
    clock.start(sleeping)
    clock.start(waker(sleeping))
    clock.run()
    assert said == [("woke", 2.0), ("woken", 2.0)]


def test_all_reduce_by_hand():
    # 4 workers: 2 * 3/4 of 16 MB at 3.125 GB/s are 7.68 ms, and 6 hops of 50 us; hidden behind 66.7 ms of backward
    assert all_reduce_rate(COSTS, 4, 5e-5) == pytest.approx(4 * 32 / 0.1)
    narrow = replace(COSTS, link_bytes=1e8)
    assert all_reduce_rate(narrow, 4, 5e-5) == pytest.approx(4 * 32 / (0.1 + 0.24 + 0.0003 - 0.2 / 3))
    assert all_reduce_rate(narrow, 1, 5e-5) == pytest.approx(320)


def test_costs_by_hand():
    machine = Machine(mult_adds=3e12, depthwise_mult_adds=3e11, least_step=0.001, decoded=1000.0, applied=1.1e9)
    work = Workload(5_000_000_000, 100_000_000, 1_100_000, 1000, 8, 4, on_gpu=True)
    of = costs(work, machine)
    assert of.step == pytest.approx(8 * 3 * (5e9 / 3e12 + 1e8 / 3e11))  # computing
    assert of.apply == pytest.approx(0.001)
    assert (of.push_bytes, of.pull_bytes, of.gradient_bytes) == (4_408_000, 4_404_000, 4_400_000)
    assert costs(work._replace(mult_adds=0, depthwise_mult_adds=0), machine).step == pytest.approx(0.002)  # decoding
    nothing = work._replace(mult_adds=0, depthwise_mult_adds=0, decode_threads=100)
    assert costs(nothing, machine).step == 0.001
    assert costs(work._replace(on_gpu=False), machine).collect == 0.0


def test_the_measure_of_a_device_is_mobilenet():
    import torch

    from pipelines.training.remote_optimizer import WAIT_SECONDS
    from tasks.nets import NetSpec, build
    from tasks.nets.complexity import count

    with torch.device("meta"):
        counted = count(build(NetSpec("mobilenet")), 224)
    assert counted.by_kind["conv dw 3x3"].mult_adds == MEASURE_DEPTHWISE
    assert counted.mult_adds == MEASURE_DEPTHWISE + MEASURE_POINTWISE
    work = Workload(MEASURE_POINTWISE, MEASURE_DEPTHWISE, 1, 0, 96, 10**6, on_gpu=True)
    assert costs(work, replace(Machine(), least_step=0)).ideal_rate == pytest.approx(6000, rel=0.01)
    assert costs(work, replace(Machine().with_device(500.0), least_step=0)).ideal_rate == pytest.approx(500)
    assert cluster_module.WAIT_SECONDS == WAIT_SECONDS
