"""Keys wait once, are held by one worker, and come when they are due."""

import asyncio
import time

from build_egtrun import KEY, cluster_with, drive, operator_of, running
from egt_operator.render import RUN_LABEL
from egt_operator.work_queue import WorkQueue
from fake_stages import Ending


def test_a_key_that_is_asked_for_twice_waits_once() -> None:
    queue = WorkQueue(time.monotonic)
    for key in ("a", "b", "a"):
        queue.add(key)
    assert len(queue) == 2


def test_a_key_that_comes_while_it_is_held_comes_again_afterwards() -> None:
    async def history() -> list[str]:
        queue = WorkQueue(time.monotonic)
        queue.add("a")
        first = await queue.get()
        queue.add("a")
        assert len(queue) == 0  # no second worker gets it meanwhile
        queue.done(first)
        return [first, await queue.get()]

    assert asyncio.run(history()) == ["a", "a"]


def test_of_several_delays_the_earliest_counts() -> None:
    async def history() -> float:
        queue = WorkQueue(time.monotonic)
        queue.add("a", 5.0)
        queue.add("a", 0.05)
        queue.add("a", 9.0)
        began = asyncio.get_running_loop().time()
        await queue.get()
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(history()) < 1.0


def in_order(queue: WorkQueue) -> list[str]:
    """What a single worker gets, to the last key that waits."""

    async def work() -> list[str]:
        found = []
        while len(queue):
            found.append(await queue.get())
            queue.done(found[-1])
        return found

    return asyncio.run(work())


def test_urgent_keys_come_first_and_in_their_order() -> None:
    queue = WorkQueue(time.monotonic)
    queue.add("a")
    queue.add("b", urgent=True)
    queue.add("c", urgent=True)
    assert in_order(queue) == ["b", "c", "a"]


def test_a_key_that_waits_and_becomes_urgent_comes_once_and_first() -> None:
    queue = WorkQueue(time.monotonic)
    for key in ("a", "b"):
        queue.add(key)
    queue.add("b", urgent=True)
    queue.add("b")
    assert in_order(queue) == ["b", "a"]


def test_a_key_that_becomes_urgent_while_it_is_held_is_urgent_afterwards() -> None:
    async def history() -> list[str]:
        queue = WorkQueue(time.monotonic)
        queue.add("a")
        held = await queue.get()
        queue.add("b")
        queue.add(held, urgent=True)
        queue.add(held)
        queue.done(held)
        return [await queue.get(), await queue.get()]

    assert asyncio.run(history()) == ["a", "b"]


def test_a_key_that_is_due_comes_even_if_others_came_before() -> None:
    async def history() -> list[str]:
        queue = WorkQueue(time.monotonic)
        queue.add("late", 0.05)
        queue.add("now")
        return [await queue.get(), await queue.get()]

    assert asyncio.run(history()) == ["now", "late"]


def test_a_worker_that_is_cancelled_while_a_key_arrives_ends() -> None:
    """What stops a worker is the loss of the lease: it must not look at one more run."""

    async def history(steps: int) -> bool:
        queue = WorkQueue(time.monotonic)
        queue.add("later", 60.0)

        async def work() -> None:
            while True:
                queue.done(await queue.get())

        worker = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        queue.add("now")
        for _ in range(steps):
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.wait([worker], timeout=0.5)
        return worker.cancelled()

    assert all(asyncio.run(history(steps)) for steps in range(4))


def test_a_run_whose_pod_has_ended_comes_before_runs_whose_pods_have_just_begun() -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=600))
    drive(cluster, until=running("prepare"))
    (pod,) = cluster.objects("pod")
    names = {**pod["metadata"], "uid": "other", "labels": {**pod["metadata"]["labels"], RUN_LABEL: "other"}}
    controller = operator_of(cluster)
    controller.heard("pod", {**pod, "metadata": names}, gone=False)
    controller.heard("pod", {**pod, "status": {"phase": "Succeeded"}}, gone=False)
    assert asyncio.run(controller.queue.get()) == KEY
