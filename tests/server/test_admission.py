"""Who is let in, who waits, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from chiasm.errors import Overloaded, TimedOut
from chiasm.server.admission import Admission


class Guest:
    """Holds a place until it is told to leave."""

    def __init__(self, admission: Admission, **options: object) -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(admission, options))

    async def _stay(self, admission: Admission, options: dict[str, object]) -> None:
        async with admission.place(**options):  # type: ignore[arg-type]
            self.inside = True
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def running(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]

    run.__name__ = test.__name__
    return run


@running
async def test_places_are_given_in_the_order_of_priority_and_then_of_coming() -> None:
    admission = Admission(1, 8)
    first = Guest(admission)
    await settle()
    ordinary, later, urgent = Guest(admission), Guest(admission), Guest(admission, priority=-1)
    await settle()
    assert (first.inside, admission.taken, admission.waiting) == (True, 1, 3)
    await first.leave()
    await settle()
    assert [ordinary.inside, later.inside, urgent.inside] == [False, False, True]
    await urgent.leave()
    await settle()
    assert [ordinary.inside, later.inside] == [True, False]
    await ordinary.leave()
    await later.leave()
    assert (admission.taken, admission.waiting) == (0, 0)


@running
async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    admission = Admission(2, 8)
    guests = [Guest(admission) for _ in range(3)]
    await settle()
    await guests[0].leave()
    newcomer = Guest(admission)
    await settle()
    assert guests[2].inside
    assert not newcomer.inside
    for guest in (*guests[1:], newcomer):
        await guest.leave()


@running
async def test_too_many_are_refused_with_the_seconds_after_which_to_come_again() -> None:
    admission = Admission(2, 3)
    guests = [Guest(admission) for _ in range(5)]
    await settle()
    with pytest.raises(Overloaded) as refused:
        await Guest(admission).task
    assert refused.value.http_status == 429
    assert refused.value.retry_after >= 1
    assert str(refused.value.retry_after) in (refused.value.hint or "")
    for guest in guests:
        await guest.leave()
    assert admission.taken == 0


@running
async def test_the_seconds_follow_from_how_long_answers_take() -> None:
    admission = Admission(1, 100)
    for _ in range(30):  # quick answers
        await Guest(admission).leave()
    quick = admission.retry_after
    guests = [Guest(admission) for _ in range(40)]
    await settle()
    assert quick == 1
    assert admission.retry_after >= quick
    admission._seconds = 3.0
    # One place, 41 questions with the newcomer's own, three seconds each.
    assert admission.retry_after == 41 * 3
    for guest in guests:
        await guest.leave()


@running
async def test_whoever_gives_up_waiting_takes_no_place() -> None:
    admission = Admission(1, 8)
    first = Guest(admission)
    await settle()
    gone, patient = Guest(admission), Guest(admission)
    await settle()
    gone.task.cancel()
    await settle()
    assert admission.waiting == 1
    await first.leave()
    await settle()
    assert patient.inside
    await patient.leave()
    assert admission.taken == 0


@running
async def test_giving_up_at_the_moment_of_admission_passes_the_place_on() -> None:
    admission = Admission(1, 8)
    first = Guest(admission)
    await settle()
    unlucky, next_one = Guest(admission), Guest(admission)
    await settle()
    first._leave.set()
    await first.task  # `unlucky` has been told, and has not run yet
    unlucky.task.cancel()
    await settle()
    assert next_one.inside
    await next_one.leave()
    assert (admission.taken, admission.waiting) == (0, 0)


@running
async def test_a_deadline_ends_the_waiting() -> None:
    admission = Admission(1, 8)
    first = Guest(admission)
    await settle()
    with pytest.raises(TimedOut):
        await Guest(admission, deadline=0.01).task
    assert admission.waiting == 0
    await first.leave()
    assert admission.taken == 0


@running
async def test_only_those_who_wait_put_their_pictures_aside() -> None:
    admission = Admission(1, 8)
    aside = []

    async def put(name: str) -> None:
        aside.append(name)

    first = Guest(admission, before_waiting=lambda: put("first"))
    await settle()
    second = Guest(admission, before_waiting=lambda: put("second"))
    await settle()
    assert aside == ["second"]
    await first.leave()
    await second.leave()


@running
async def test_a_failure_while_waiting_frees_the_queue() -> None:
    admission = Admission(1, 8)
    first = Guest(admission)
    await settle()

    async def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await Guest(admission, before_waiting=fail).task
    assert admission.waiting == 0
    await first.leave()
