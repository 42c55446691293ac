"""Keys that this server gives out: each with its own models, budgets and rates.

A key's text has 256 random bits, so its plain SHA-256 is enough to keep it by (there is nothing to
guess, and no need for a slow hash), and is all that is kept. The text is shown once.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from chiasm.errors import InvalidKey, InvalidRequest, KeyForbidden, KeyNotFound
from chiasm.operations import moments
from chiasm.operations.budgets import Budget
from chiasm.operations.tables import budgets as budgets_table
from chiasm.operations.tables import keys as keys_table

if TYPE_CHECKING:
    from chiasm.operations.database import Database

PREFIX = "chk-"
CACHE_SECONDS = 2.0  # a revoked key may pass for so long in another process

_BYTES = 32
_SHOWN = len(PREFIX) + 6
_CACHED = 10_000  # keys, or guesses at keys, that are remembered at once
_MOST_RATE = 2**40


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without its text. models, collections: patterns (`gpt-*`); none is all.

    prefix: how the text begins. expires, revoked: None is never, and not.
    """

    id: str
    name: str
    created: datetime
    prefix: str
    models: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    requests_per_minute: int | None = None
    image_tokens_per_minute: int | None = None
    expires: datetime | None = None
    revoked: datetime | None = None

    def require_model(self, model: str) -> None:
        """Raises KeyForbidden unless the key may ask this model, by the name it is asked by."""
        self._require("model", model, self.models)

    def require_collection(self, collection: str) -> None:
        """Raises KeyForbidden unless the key may use this collection."""
        self._require("collection", collection, self.collections)

    def may_use_model(self, model: str) -> bool:
        """For lists: show only what may be used."""
        return _matches(model, self.models)

    def may_use_collection(self, collection: str) -> bool:
        """For lists: show only what may be used."""
        return _matches(collection, self.collections)

    def state(self, now: datetime) -> str:
        """active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    def _require(self, what: str, name: str, patterns: tuple[str, ...]) -> None:
        if not _matches(name, patterns):
            raise KeyForbidden(
                f"The key {self.name!r} is not for the {what} {name[:200]!r}.",
                hint=f"It is for {', '.join(patterns)}.",
                param=what,
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


class Keys:
    """All keys of a database. Threads may share it. clock: the time, UTC."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = moments.now) -> None:
        self._database = database
        self._clock = clock
        self._cache: dict[bytes, tuple[float, Key | None]] = {}  # digest → (good until, key)
        self._any = (0.0, False)

    # On a request's way ---------------------------------------------------------------------

    def check(self, text: str) -> Key:
        """The key with this text. From a cache that is at most two seconds old; else one query.

        Raises InvalidKey with one sentence, and after the same work, whether the key is unknown,
        expired or revoked; StoreError where the database does not answer.
        """
        digest = _digest(text)
        known = self._cache.get(digest)
        if known is None or known[0] <= time.monotonic():
            known = self._look_up(digest)
        return self._good(known[1])

    def cached(self, text: str) -> Key | None:
        """What `check` would return, if that needs no query; else None. Raises InvalidKey."""
        known = self._cache.get(_digest(text))
        if known is None or known[0] <= time.monotonic():
            return None
        return self._good(known[1])

    def any(self) -> bool:
        """Whether there has ever been a key. A server whose keys are all revoked is not open."""
        until, found = self._any
        if not found and until <= time.monotonic():
            with self._database.reading() as connection:
                found = connection.execute(sa.select(keys_table.c.id).limit(1)).first() is not None
            self._any = (time.monotonic() + CACHE_SECONDS, found)
        return found

    # By hand --------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        *,
        models: Sequence[str] = (),
        collections: Sequence[str] = (),
        budgets: Iterable[Budget] = (),
        requests_per_minute: int | None = None,
        image_tokens_per_minute: int | None = None,
        expires: datetime | None = None,
    ) -> tuple[str, Key]:
        """A new key, and its text, which is kept nowhere. Raises InvalidRequest, StoreError."""
        now = self._clock()
        text = _new_text()
        key = Key(
            id=f"key_{secrets.token_hex(8)}",
            name=_checked_name(name),
            created=moments.moment(moments.microseconds(now)),
            prefix=text[:_SHOWN],
            models=_checked_patterns(models, "model"),
            collections=_checked_patterns(collections, "collection"),
            budgets=_checked_budgets(budgets),
            requests_per_minute=_checked_rate(requests_per_minute, "requests"),
            image_tokens_per_minute=_checked_rate(image_tokens_per_minute, "image tokens"),
            expires=_checked_end(expires, now),
        )
        with self._database.writing() as connection:
            connection.execute(sa.insert(keys_table), _row(key) | {"digest": _digest(text).hex()})
            rows = [
                {"key_id": key.id, "period": b.period, "of": b.of, "limit": b.stored}
                for b in key.budgets
            ]
            if rows:
                connection.execute(sa.insert(budgets_table), rows)
        self._forget()
        return text, key

    def list(self, *, revoked: bool = False) -> tuple[Key, ...]:
        """All keys in the order they were made. revoked: those, too."""
        query = sa.select(keys_table).order_by(keys_table.c.created, keys_table.c.id)
        if not revoked:
            query = query.where(keys_table.c.revoked.is_(None))
        with self._database.reading() as connection:
            return _keys(connection, connection.execute(query).all())

    def find(self, name: str) -> Key:
        """By its id, or by a name that one key alone has, those in use first. KeyNotFound."""
        query = sa.select(keys_table).where(
            sa.or_(keys_table.c.id == name, keys_table.c.name == name)
        )
        with self._database.reading() as connection:
            found = _keys(connection, connection.execute(query).all())
        by_id = [key for key in found if key.id == name]
        in_use = [key for key in found if key.revoked is None]
        for choice in (by_id, in_use, found):
            if len(choice) == 1:
                return choice[0]
        if found:
            ids = ", ".join(key.id for key in in_use or found)
            raise KeyNotFound(
                f"{len(in_use or found)} keys are named {name!r}.", hint=f"Say {ids}."
            )
        raise KeyNotFound(f"There is no key {name!r}.", hint="See: chiasm keys list")

    def revoke(self, name: str) -> Key:
        """End a key. Here at once, in other processes within two seconds. KeyNotFound."""
        key = self.find(name)
        now = moments.microseconds(self._clock())
        self._update(
            sa.update(keys_table)
            .where(keys_table.c.id == key.id, keys_table.c.revoked.is_(None))
            .values(revoked=now)
        )
        return self.find(key.id)

    def rotate(self, name: str) -> tuple[str, Key]:
        """A new text for the same key, with its budgets and what it spent; the old one ends."""
        key, text = self.find(name), _new_text()
        if key.revoked is not None:
            raise InvalidRequest(f"The key {key.name!r} is revoked.", hint="Make a new one.")
        self._update(
            sa.update(keys_table)
            .where(keys_table.c.id == key.id)
            .values(digest=_digest(text).hex(), prefix=text[:_SHOWN])
        )
        return text, self.find(key.id)

    # Inside ---------------------------------------------------------------------------------

    def _look_up(self, digest: bytes) -> tuple[float, Key | None]:
        # From before the query: a key that is revoked meanwhile must not be remembered as good.
        cache = self._cache
        until = time.monotonic() + CACHE_SECONDS
        values = {"digest": digest.hex()}
        with self._database.reading() as connection:
            row = connection.execute(_KEY, values).one_or_none()
            budgets = connection.execute(_BUDGETS_OF_KEY, values).all()
        known = (until, None if row is None else _key(row, budgets))
        if len(cache) >= _CACHED:
            cache.clear()
        cache[digest] = known
        return known

    def _good(self, key: Key | None) -> Key:
        if key is None or (key.expires is not None and key.expires <= self._clock()):
            raise InvalidKey(
                "The API key is not valid.",
                hint="Send one as Authorization: Bearer chk-…; the operator makes them.",
            )
        return key

    def _update(self, statement: sa.Update) -> None:
        with self._database.writing() as connection:
            connection.execute(statement)
        self._forget()

    def _forget(self) -> None:
        self._cache = {}
        self._any = (0.0, self._any[1])


def _new_text() -> str:
    random = base64.urlsafe_b64encode(secrets.token_bytes(_BYTES)).decode().rstrip("=")
    return PREFIX + random


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


# Rows -------------------------------------------------------------------------------------------


def _row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "models": [*key.models],
        "collections": [*key.collections],
        "requests_per_minute": key.requests_per_minute,
        "image_tokens_per_minute": key.image_tokens_per_minute,
        "created": moments.microseconds(key.created),
        "expires": None if key.expires is None else moments.microseconds(key.expires),
    }


_KEY = sa.select(keys_table).where(
    keys_table.c.digest == sa.bindparam("digest"), keys_table.c.revoked.is_(None)
)
_IN_ORDER = (budgets_table.c.period, budgets_table.c.of)
# By the digest again, and asked whether there is a key or not: see `Keys.check`.
_BUDGETS_OF_KEY = (
    sa.select(budgets_table)
    .join(keys_table)
    .where(keys_table.c.digest == sa.bindparam("digest"))
    .order_by(*_IN_ORDER)
)
_ALL_BUDGETS = sa.select(budgets_table).order_by(*_IN_ORDER)


def _keys(connection: Connection, rows: Iterable[sa.Row[Any]]) -> tuple[Key, ...]:
    budgets: dict[str, list[sa.Row[Any]]] = {}
    for budget in connection.execute(_ALL_BUDGETS):
        budgets.setdefault(budget.key_id, []).append(budget)
    return tuple(_key(row, budgets.get(row.id, [])) for row in rows)


def _key(row: sa.Row[Any], budgets: Iterable[sa.Row[Any]]) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        created=moments.moment(row.created),
        prefix=row.prefix,
        models=tuple(row.models),
        collections=tuple(row.collections),
        budgets=tuple(Budget.read(b.period, b.of, b.limit) for b in budgets),
        requests_per_minute=row.requests_per_minute,
        image_tokens_per_minute=row.image_tokens_per_minute,
        expires=None if row.expires is None else moments.moment(row.expires),
        revoked=None if row.revoked is None else moments.moment(row.revoked),
    )


# Checks -----------------------------------------------------------------------------------------


def _checked_name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > 200 or not name.isprintable():
        raise InvalidRequest(
            "A key needs a name of at most 200 printable characters.",
            hint="Name who will use it.",
            param="name",
        )
    return name


def _checked_patterns(patterns: Sequence[str], what: str) -> tuple[str, ...]:
    for pattern in patterns:
        if not pattern or not pattern.isprintable():
            raise InvalidRequest(f"{pattern!r} is no pattern for a {what}'s name.", param=what)
    return tuple(dict.fromkeys(patterns))


def _checked_budgets(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    given = sorted(budgets, key=lambda budget: (budget.period, budget.of))
    for one, other in itertools.pairwise(given):
        if (one.period, one.of) == (other.period, other.of):
            raise InvalidRequest(
                f"There are two budgets of {one.of} by {one.period}.", param="budgets"
            )
    return tuple(given)


def _checked_rate(rate: int | None, what: str) -> int | None:
    if rate is not None and not 1 <= rate <= _MOST_RATE:
        raise InvalidRequest(f"{rate} {what} a minute is no rate.", hint="It is 1 or more.")
    return rate


def _checked_end(expires: datetime | None, now: datetime) -> datetime | None:
    if expires is None:
        return None
    if expires.tzinfo is None or expires <= now:
        raise InvalidRequest("A key must expire later than now.", param="expires")
    return moments.moment(moments.microseconds(expires))
