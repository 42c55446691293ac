"""What a key may spend in a day or a month, and that many requests at once do not spend more.

A request's estimate is reserved before it is sent, and settled for what it took when it has been
answered. The reservation is one conditional UPDATE: the database adds the amount only where the
sum stays within the limit, under the row's lock. So it holds over threads and processes alike.

Where the answer takes more than was reserved, the whole is charged all the same; a budget can be
passed by so much, and by no more requests.

A request whose process dies between the two stays charged as it was estimated: nobody knows what
it cost. `Budgets.open_reservations` shows such ones, `Budgets.clear` gives them back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from chiasm.errors import BudgetExceeded, InvalidRequest, StoreError
from chiasm.operations import moments, money
from chiasm.operations.tables import reservations, spending

if TYPE_CHECKING:
    from chiasm.operations.database import Database
    from chiasm.operations.keys import Key

Period = Literal["day", "month"]
Of = Literal["money", "image_tokens", "requests"]

_PERIODS: tuple[Period, ...] = get_args(Period)
_OF: tuple[Of, ...] = get_args(Of)
_MOST = 2**53  # of anything: nine million dollars
_NO_LIMIT = 2**62  # and room in 64 bits for what is added to it
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound for each calendar day or month, UTC. limit: US dollars, tokens or requests."""

    period: Period
    of: Of
    limit: Decimal | int

    def __post_init__(self) -> None:
        if self.period not in _PERIODS or self.of not in _OF:
            raise InvalidRequest(
                f"There is no budget of {self.of} by {self.period}.",
                hint="It is of money, image_tokens or requests, by day or month.",
            )
        exact = isinstance(self.limit, int) or (self.of == "money" and self.limit.is_finite())
        if not exact or not 0 <= self.limit <= _MOST or self.stored > _MOST:
            raise InvalidRequest(
                f"The limit of {self.of} by {self.period} cannot be {self.limit}.",
                hint="Money is in US dollars; tokens and requests are whole numbers.",
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`money/day=5.00`, `image_tokens/month=1000000`. Raises InvalidRequest."""
        name, _, amount = text.partition("=")
        of, slash, period = name.strip().partition("/")
        try:
            given = Decimal(amount.strip().removeprefix("$"))
            whole = of != "money" and abs(given) <= _MOST and given == given.to_integral_value()
            limit: Decimal | int = int(given) if whole else given
        except (InvalidOperation, OverflowError, ValueError):
            slash = ""
        if not slash:
            raise InvalidRequest(
                f"{text!r} is no budget.",
                hint="Write money/day=5.00, image_tokens/month=1000000 or requests/day=200.",
            )
        return cls(cast("Period", period), cast("Of", of), limit)

    def __str__(self) -> str:
        return f"{_shown(self.of, self.limit)} a {self.period}"

    @classmethod
    def read(cls, period: str, of: str, stored: int) -> Budget:
        """From the tables' units."""
        return cls(cast("Period", period), cast("Of", of), _amount(cast("Of", of), stored))

    @property
    def stored(self) -> int:
        """The limit in the tables' units."""
        return money.nanodollars(Decimal(self.limit)) if self.of == "money" else int(self.limit)


@dataclass(frozen=True, slots=True)
class Spend:
    """What a request takes, or may take. money: US dollars."""

    money: Decimal = Decimal(0)
    image_tokens: int = 0
    requests: int = 1

    def __post_init__(self) -> None:
        amounts = (self.money, self.image_tokens, self.requests)
        if not self.money.is_finite() or any(amount < 0 for amount in amounts):
            raise ValueError(f"{self} is no spend")


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was set aside for a request. key: its id. id: empty where the key has no budget."""

    id: str
    key: str
    estimate: Spend
    created: datetime


@dataclass(frozen=True, slots=True)
class Left:
    """How a budget stands. spent: settled and reserved; left: never below zero."""

    budget: Budget
    spent: Decimal | int
    reserved: Decimal | int
    left: Decimal | int
    resets: datetime


class Budgets:
    """The budgets of all keys. Threads may share it. clock: the time, UTC."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = moments.now) -> None:
        self._database = database
        self._clock = clock

    def reserve(self, key: Key, estimate: Spend) -> Reservation:
        """Set aside what a request may take. A key without budgets costs nothing here.

        Raises BudgetExceeded, which names the budget, what is left and when it begins anew;
        StoreError where the database does not answer: then nothing may be sent.
        """
        now = self._clock()
        if not key.budgets:
            return Reservation("", key.id, estimate, now)
        reservation = Reservation(secrets.token_hex(16), key.id, estimate, now)
        amounts = _stored(estimate)
        row = {"id": reservation.id, "key_id": key.id, "created": moments.microseconds(now)}
        with self._database.writing() as connection:
            for period in _PERIODS:  # in this order always, so that two never wait for each other
                self._take(connection, key, period, amounts, now)
            connection.execute(_RESERVE, row | amounts)
        return reservation

    def settle(self, reservation: Reservation, actual: Spend) -> None:
        """Charge what the request took in place of its estimate, to the day it was reserved on.

        A second time changes nothing. Raises StoreError; the estimate then stays charged.
        """
        if not reservation.id:
            return
        with self._database.writing() as connection:
            held = connection.execute(_UNRESERVE, {"this": reservation.id}).one_or_none()
            if held is None:  # settled before
                return
            charged = _stored(actual)
            change = {of: charged[of] - was for of, was in held._mapping.items()}
            _charge(connection, reservation.key, reservation.created, change)

    def release(self, reservation: Reservation) -> None:
        """Give the whole back: nothing was sent. Raises StoreError."""
        self.settle(reservation, Spend(requests=0))

    def left(self, key: Key) -> tuple[Left, ...]:
        """How each of the key's budgets stands now. Raises StoreError."""
        now = self._clock()
        with self._database.reading() as connection:
            spent = {period: _spent(connection, key.id, period, now) for period in _PERIODS}
            held = {period: _held(connection, key.id, period, now) for period in _PERIODS}
        return tuple(
            _left(budget, spent[budget.period][budget.of], held[budget.period][budget.of], now)
            for budget in key.budgets
        )

    def open_reservations(
        self, *, key: str | None = None, older_than: timedelta = timedelta(0)
    ) -> tuple[Reservation, ...]:
        """What is reserved and not settled, oldest first: under way, or left by a crash."""
        before = moments.microseconds(self._clock() - older_than)
        query = sa.select(reservations).where(_HOLDS, reservations.c.created <= before)
        if key is not None:
            query = query.where(reservations.c.key_id == key)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(reservations.c.created)).all()
        return tuple(_reservation(row) for row in rows)

    def clear(
        self, *, key: str | None = None, older_than: timedelta = timedelta(0)
    ) -> tuple[Reservation, ...]:
        """Give open reservations back to their budgets, and return them.

        One whose request was alive after all is charged in full when that settles.
        """
        cleared = []
        for reservation in self.open_reservations(key=key, older_than=older_than):
            with self._database.writing() as connection:
                row = connection.execute(_LOCK, {"this": reservation.id}).one_or_none()
                if row is not None:  # not settled meanwhile
                    change = {of: -was for of, was in row._mapping.items()}
                    _charge(connection, reservation.key, reservation.created, change)
                    connection.execute(_EMPTY, {"this": reservation.id})
                    cleared.append(reservation)
        return tuple(cleared)

    def _take(
        self,
        connection: Connection,
        key: Key,
        period: Period,
        amounts: dict[str, int],
        now: datetime,
    ) -> None:
        """Add to what the key has spent in the period, or raise BudgetExceeded."""
        name = _name(period, now)
        budgets = [budget for budget in key.budgets if budget.period == period]
        limits = {budget.of: budget.stored for budget in budgets}
        values = {"key": key.id, "name": name} | {f"{of}_more": amounts[of] for of in _OF}
        values |= {f"{of}_limit": limits.get(of, _NO_LIMIT) for of in _OF}
        first = {"key_id": key.id, "period": name, **{str(of): 0 for of in _OF}}
        for _ in range(_TRIES):
            if connection.execute(_TAKE, values).rowcount:
                return
            # The row is missing on the first request of a period; else something is spent.
            connection.execute(self._database.insert(spending).on_conflict_do_nothing(), first)
            spent = _spent(connection, key.id, period, now)
            over = [b for b in budgets if spent[b.of] + amounts[b.of] > b.stored]
            if over:
                raise _refusal(key, over[0], spent[over[0].of], amounts[over[0].of], now)
            # There was no row, or others settled between the two statements: once more.
        raise StoreError(f"What the key {key.id} has spent changes faster than it can be read.")


# The statements, made once ----------------------------------------------------------------------

_PERIOD_OF_KEY = sa.and_(
    spending.c.key_id == sa.bindparam("key"), spending.c.period == sa.bindparam("name")
)
_CHARGE = (
    sa.update(spending)
    .where(_PERIOD_OF_KEY)
    .values({of: spending.c[of] + sa.bindparam(f"{of}_more", type_=sa.BigInteger) for of in _OF})
)
_TAKE = _CHARGE.where(
    *(
        spending.c[of] + sa.bindparam(f"{of}_more", type_=sa.BigInteger)
        <= sa.bindparam(f"{of}_limit", type_=sa.BigInteger)
        for of in _OF
    )
)
_SPENT = sa.select(*(spending.c[of] for of in _OF)).where(_PERIOD_OF_KEY)
_RESERVE = sa.insert(reservations)
_THIS = reservations.c.id == sa.bindparam("this")
_UNRESERVE = sa.delete(reservations).where(_THIS).returning(*(reservations.c[of] for of in _OF))
_LOCK = sa.select(*(reservations.c[of] for of in _OF)).where(_THIS).with_for_update()
_EMPTY = sa.update(reservations).where(_THIS).values(dict.fromkeys(_OF, 0))
_HOLDS = sa.or_(*(reservations.c[of] > 0 for of in _OF))  # false for what was cleared
_HELD = sa.select(*(sa.func.sum(reservations.c[of]).label(of) for of in _OF)).where(
    reservations.c.key_id == sa.bindparam("key"), reservations.c.created >= sa.bindparam("start")
)


def _charge(connection: Connection, key: str, when: datetime, change: dict[str, int]) -> None:
    for period in _PERIODS:
        values = {"key": key, "name": _name(period, when)}
        connection.execute(_CHARGE, values | {f"{of}_more": change[of] for of in _OF})


def _spent(connection: Connection, key: str, period: Period, now: datetime) -> dict[str, int]:
    row = connection.execute(_SPENT, {"key": key, "name": _name(period, now)}).mappings().first()
    return {of: 0 if row is None else row[of] for of in _OF}


def _held(connection: Connection, key: str, period: Period, now: datetime) -> dict[str, int]:
    start = moments.microseconds(_start(period, now))
    row = connection.execute(_HELD, {"key": key, "start": start}).one()
    return {of: int(row._mapping[of] or 0) for of in _OF}


# Units and words --------------------------------------------------------------------------------


def _stored(spend: Spend) -> dict[str, int]:
    return {
        "money": money.nanodollars(spend.money),
        "image_tokens": spend.image_tokens,
        "requests": spend.requests,
    }


def _amount(of: Of, stored: int) -> Decimal | int:
    return money.dollars(stored) if of == "money" else stored


def _shown(of: Of, amount: Decimal | int) -> str:
    if of == "money":
        return money.shown(Decimal(amount))
    return f"{amount:,} {of.replace('_', ' ')}"


def _name(period: Period, when: datetime) -> str:
    """2026-11-25 or 2026-11: a period is its own name."""
    day = when.astimezone(UTC).date().isoformat()
    return day if period == "day" else day[:7]


def _start(period: Period, when: datetime) -> datetime:
    day = when.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if period == "day" else day.replace(day=1)


def _end(period: Period, when: datetime) -> datetime:
    start = _start(period, when)
    if period == "day":
        return start + timedelta(days=1)
    return (start + timedelta(days=31)).replace(day=1)


def _reservation(row: Any) -> Reservation:
    estimate = Spend(money.dollars(row.money), row.image_tokens, row.requests)
    return Reservation(row.id, row.key_id, estimate, moments.moment(row.created))


def _left(budget: Budget, spent: int, held: int, now: datetime) -> Left:
    of, left = budget.of, max(0, budget.stored - spent)
    resets = _end(budget.period, now)
    return Left(budget, _amount(of, spent), _amount(of, held), _amount(of, left), resets)


def _refusal(key: Key, budget: Budget, spent: int, wanted: int, now: datetime) -> BudgetExceeded:
    left, may = (
        _shown(budget.of, _amount(budget.of, amount))
        for amount in (max(0, budget.stored - spent), wanted)
    )
    resets = _end(budget.period, now).strftime("%Y-%m-%dT%H:%M:%SZ")
    return BudgetExceeded(
        f"The budget of the key {key.name!r} is {budget}; {left} is left, and this request may "
        f"take {may}.",
        resets=resets,
        hint=f"It begins anew at {resets}. Ask for less, or have the budget raised.",
    )
