from expert_workers.supervision.restart_policy import RestartOptions, RestartPolicy

OPTIONS = RestartOptions(first_wait=1.0, longest_wait=60.0, healthy_after=60.0, max_failures=5)


def test_the_first_time_it_may_come_back_at_once() -> None:
    policy = RestartPolicy(OPTIONS)
    policy.failed(100.0)
    assert policy.next_at == 100.0


def test_then_it_waits_longer_each_time_until_the_circuit_opens() -> None:
    policy, waits = RestartPolicy(OPTIONS), []
    for number in range(8):
        now = 100.0 * number
        policy.ready(now)
        policy.failed(now + 1)
        waits.append(policy.next_at - now - 1)
        assert policy.is_open == (number >= 4)
    assert waits == [0.0, 1.0, 2.0, 4.0, 60.0, 60.0, 60.0, 60.0]


def test_a_worker_that_is_on_its_way_is_tried_in_a_moment_and_not_before_its_wait_is_over() -> None:
    policy = RestartPolicy(RestartOptions(moment=0.1, first_wait=1.0))
    policy.failed(0.0)
    policy.soon(0.0)
    assert policy.next_at == 0.1
    policy.failed(10.0)
    policy.soon(10.0)
    assert policy.next_at == 11.0, "what was asked of it when it was lost may fail after the loss was noted"
    policy.soon(11.0)
    assert policy.next_at == 11.1


def test_the_wait_has_a_limit() -> None:
    policy = RestartPolicy(RestartOptions(first_wait=1.0, longest_wait=5.0, max_failures=100))
    for _ in range(20):
        policy.failed(0.0)
    assert policy.next_at == 5.0


def test_after_a_healthy_while_all_is_forgotten() -> None:
    policy = RestartPolicy(OPTIONS)
    for _ in range(5):
        policy.failed(0.0)
    policy.ready(10.0)
    policy.failed(69.0)
    assert policy.is_open
    policy.ready(100.0)
    policy.failed(160.0)
    assert not policy.is_open
    assert policy.next_at == 160.0
