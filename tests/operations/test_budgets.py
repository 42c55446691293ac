"""Budgets: what is reserved, settled and given back, and that nobody spends more."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from chiasm.errors import BudgetExceeded, InvalidRequest
from chiasm.operations.budgets import Budget, Budgets, Reservation, Spend
from chiasm.operations.database import Database, open_database
from chiasm.operations.keys import Key, Keys

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budgets(database: Database, clock: Clock) -> Budgets:
    return Budgets(database, clock)


def make(database: Database, *budgets: str) -> Key:
    return Keys(database).create("a", budgets=[Budget.parse(text) for text in budgets])[1]


def dollars(amount: str) -> Spend:
    return Spend(Decimal(amount))


def left(budgets: Budgets, key: Key) -> list[Decimal | int]:
    return [one.left for one in budgets.left(key)]


def test_reserved_then_settled(database: Database, budgets: Budgets) -> None:
    key = make(database, "money/day=1.00", "image_tokens/month=1000", "requests/day=10")
    reservation = budgets.reserve(key, Spend(Decimal("0.30"), 500))
    money, requests, tokens = budgets.left(key)
    assert (money.spent, money.reserved, money.left) == (Decimal("0.3"),) * 2 + (Decimal("0.7"),)
    assert (requests.spent, requests.left) == (1, 9)
    assert (tokens.spent, tokens.left) == (500, 500)
    budgets.settle(reservation, Spend(Decimal("0.123456789"), 420))
    money, requests, tokens = budgets.left(key)
    assert (money.spent, money.reserved) == (Decimal("0.123456789"), 0)
    assert (requests.spent, tokens.spent) == (1, 420)


def test_what_was_not_sent_costs_nothing(database: Database, budgets: Budgets) -> None:
    key = make(database, "money/day=1", "requests/month=10")
    budgets.release(budgets.reserve(key, dollars("1")))
    assert left(budgets, key) == [1, 10]


def test_settled_twice_is_charged_once(database: Database, budgets: Budgets) -> None:
    key = make(database, "money/day=1")
    reservation = budgets.reserve(key, dollars("0.5"))
    budgets.settle(reservation, dollars("0.2"))
    budgets.settle(reservation, dollars("0.2"))
    budgets.release(reservation)
    assert left(budgets, key) == [Decimal("0.8")]


def test_the_refusal_says_which_what_is_left_and_when(database: Database, budgets: Budgets) -> None:
    key = make(database, "money/day=1", "money/month=2", "image_tokens/month=100")
    budgets.settle(budgets.reserve(key, dollars("0.6")), dollars("0.6"))
    with pytest.raises(BudgetExceeded) as caught:
        budgets.reserve(key, dollars("0.5"))
    said = str(caught.value)
    assert "$1.00 a day; $0.40 is left, and this request may take $0.50" in said
    assert caught.value.resets == "2026-12-01T00:00:00Z"
    assert caught.value.resets in said
    assert (caught.value.http_status, caught.value.code) == (429, "insufficient_quota")
    with pytest.raises(BudgetExceeded, match="100 image tokens a month; 100 image tokens is left"):
        budgets.reserve(key, Spend(image_tokens=101))
    # A refusal has reserved nothing, neither in the day nor in the month.
    assert left(budgets, key) == [Decimal("0.4"), 100, Decimal("1.4")]
    budgets.reserve(key, Spend(Decimal("0.4"), 100))


def test_an_answer_that_takes_more_is_charged_in_full(database: Database, budgets: Budgets) -> None:
    key = make(database, "money/day=1", "requests/day=100")
    budgets.settle(budgets.reserve(key, dollars("0.9")), dollars("1.5"))
    money, _ = budgets.left(key)
    assert (money.spent, money.left) == (Decimal("1.5"), 0)
    with pytest.raises(BudgetExceeded, match=r"\$0\.00 is left"):
        budgets.reserve(key, dollars("0"))


def test_a_budget_spent_to_the_last_still_allows_what_costs_nothing(
    database: Database, budgets: Budgets
) -> None:
    key = make(database, "money/day=1")
    budgets.settle(budgets.reserve(key, dollars("1")), dollars("1"))
    budgets.reserve(key, dollars("0"))
    with pytest.raises(BudgetExceeded):
        budgets.reserve(key, dollars("0.000000001"))


def test_money_is_exact_and_never_rounded_down(database: Database, budgets: Budgets) -> None:
    key = make(database, "money/month=10")
    for _ in range(10):
        budgets.settle(budgets.reserve(key, dollars("0.1")), dollars("0.1"))
    assert left(budgets, key) == [9]
    budgets.settle(budgets.reserve(key, dollars("1e-13")), dollars("1e-13"))
    assert left(budgets, key) == [Decimal("8.999999999")]


def test_days_and_months_begin_anew_at_midnight_utc(
    database: Database, budgets: Budgets, clock: Clock
) -> None:
    key = make(database, "requests/day=1", "requests/month=2")
    late = budgets.reserve(key, Spend())
    with pytest.raises(BudgetExceeded, match="1 requests a day"):
        budgets.reserve(key, Spend())
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    assert left(budgets, key) == [1, 2]
    budgets.settle(late, Spend())  # belongs to November
    assert left(budgets, key) == [1, 2]
    clock.now -= timedelta(microseconds=1)
    assert left(budgets, key) == [0, 1]
    assert [one.resets for one in budgets.left(key)] == [datetime(2026, 12, 1, tzinfo=UTC)] * 2


def test_keys_do_not_share(database: Database, budgets: Budgets) -> None:
    one, other = make(database, "requests/day=1"), make(database, "requests/day=1")
    budgets.reserve(one, Spend())
    budgets.reserve(other, Spend())
    with pytest.raises(BudgetExceeded):
        budgets.reserve(one, Spend())


def test_a_key_without_budgets_needs_no_database(database: Database, budgets: Budgets) -> None:
    key = make(database)
    database.close()
    reservation = budgets.reserve(key, dollars("1000"))
    budgets.settle(reservation, dollars("1"))
    assert budgets.open_reservations() == ()


# Many at once -----------------------------------------------------------------------------------


def test_a_hundred_requests_at_once_do_not_overspend(database: Database, budgets: Budgets) -> None:
    """Of $1.00, at $0.03 each: 33 may pass. They come in a hundred threads."""
    key = make(database, "money/day=1.00", "requests/month=1000")

    def ask(_: int) -> Reservation | None:
        try:
            return budgets.reserve(key, dollars("0.03"))
        except BudgetExceeded:
            return None

    with ThreadPoolExecutor(100) as pool:
        passed = [one for one in pool.map(ask, range(100)) if one is not None]
        assert len(passed) == 33
        assert left(budgets, key) == [Decimal("0.01"), 1000 - 33]
        for _ in pool.map(lambda one: budgets.settle(one, dollars("0.01")), passed):
            pass
    assert left(budgets, key) == [Decimal("0.67"), 1000 - 33]
    assert budgets.open_reservations() == ()


_SPEND = """
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from chiasm.errors import BudgetExceeded
from chiasm.operations.budgets import Budgets, Spend
from chiasm.operations.database import open_database
from chiasm.operations.keys import Keys

with closing(open_database(sys.argv[1], Path(sys.argv[2]))) as database:
    key, budgets = Keys(database).find("a"), Budgets(database)

    def ask(number):
        try:
            reservation = budgets.reserve(key, Spend(Decimal("0.03"), 10))
        except BudgetExceeded:
            return 0
        if number % 3 == 0:  # some take less than they might have
            budgets.settle(reservation, Spend(Decimal("0.02"), 10))
            return 20
        budgets.settle(reservation, Spend(Decimal("0.03"), 10))
        return 30

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(10) as pool:
        print(sum(pool.map(ask, range(60))))
"""


def test_several_processes_do_not_overspend(url: str, tmp_path: Path) -> None:
    """Three of ten threads each ask 180 times; the budget is for about half of it."""
    with closing(open_database(url, tmp_path)) as database:
        key = make(database, "money/day=2.50", "image_tokens/day=1000000")
        command = [sys.executable, "-c", _SPEND, url, str(tmp_path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        spent = 0
        for process in processes:
            out, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (0, "")
            spent += int(out)
        tokens, money = Budgets(database).left(key)
    assert money.budget.of == "money"
    assert money.spent == Decimal(spent) / 1000
    assert money.spent <= Decimal("2.50")
    # At the last refusal more than 2.47 was taken; the 29 other threads may since have given back
    # 0.01 each.
    assert money.spent > Decimal("2.47") - 29 * Decimal("0.01")
    assert money.reserved == tokens.reserved == 0


# After a crash ----------------------------------------------------------------------------------

_CRASH = """
import os, sys
from decimal import Decimal
from pathlib import Path
from chiasm.operations.budgets import Budgets, Spend
from chiasm.operations.database import open_database
from chiasm.operations.keys import Keys

database = open_database(sys.argv[1], Path(sys.argv[2]))
Budgets(database).reserve(Keys(database).find("a"), Spend(Decimal("0.25"), 70))
os._exit(9)
"""


def test_a_crash_leaves_the_estimate_charged_until_it_is_cleared(url: str, tmp_path: Path) -> None:
    with closing(open_database(url, tmp_path)) as database:
        key, budgets = make(database, "money/day=1", "image_tokens/day=100"), Budgets(database)
        command = [sys.executable, "-c", _CRASH, url, str(tmp_path)]
        assert subprocess.run(command, check=False).returncode == 9
        assert left(budgets, key) == [30, Decimal("0.75")]
        (found,) = budgets.open_reservations()
        assert (found.key, found.estimate) == (key.id, Spend(Decimal("0.25"), 70))
        assert budgets.open_reservations(older_than=timedelta(minutes=1)) == ()
        assert budgets.clear(key="key_other") == ()
        assert budgets.clear(key=key.id) == (found,)
        assert left(budgets, key) == [100, 1]
        assert budgets.open_reservations() == budgets.clear() == ()


def test_a_request_that_was_cleared_alive_is_charged_when_it_settles(
    database: Database, budgets: Budgets
) -> None:
    key = make(database, "money/day=1")
    reservation = budgets.reserve(key, dollars("0.5"))
    budgets.clear()
    assert left(budgets, key) == [1]
    budgets.settle(reservation, dollars("0.4"))
    budgets.settle(reservation, dollars("0.4"))
    assert left(budgets, key) == [Decimal("0.6")]


# What cannot be a budget ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("money/day=5", Budget("day", "money", Decimal(5))),
        (" money/month = $0.000001 ", Budget("month", "money", Decimal("0.000001"))),
        ("image_tokens/month=1e6", Budget("month", "image_tokens", 10**6)),
        ("requests/day=0", Budget("day", "requests", 0)),
    ],
)
def test_budgets_as_text(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "money=5",
        "money/week=5",
        "tokens/day=5",
        "money/day=",
        "money/day=-1",
        "money/day=NaN",
        "money/day=1e999999",
        "money/day=inf",
        "image_tokens/day=1.5",
        "requests/day=1e99",
        "money/day=1e10",
    ],
)
def test_texts_that_are_no_budget(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Budget.parse(text)


@pytest.mark.parametrize(
    "wrong", [(Decimal("NaN"), 0, 1), (Decimal(-1), 0, 1), (Decimal(0), -1, 1), (Decimal(0), 0, -1)]
)
def test_a_spend_is_never_negative(wrong: tuple[Decimal, int, int]) -> None:
    with pytest.raises(ValueError, match="is no spend"):
        Spend(*wrong)
