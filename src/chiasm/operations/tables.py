"""The tables of keys, budgets and the ledger, as SQLAlchemy Core knows them.

Units, the same in all tables: a moment is whole microseconds since 1970, UTC; money is whole
billionths of a US dollar ("nanodollars"; 64 bits hold nine thousand million dollars). So both are
exact, sort and sum alike in SQLite and PostgreSQL, and never pass through a float.

All names begin with `chiasm_`: the database may be shared with other programs. A change here needs
a migration beside it (`migrations/versions/`); a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "uq": "%(table_name)s_%(column_0_name)s_unique",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
    }
)

keys = Table(
    "chiasm_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of the text, in hex
    Column("prefix", String(16), nullable=False),  # how the text begins, to know it again
    Column("models", JSON, nullable=False),  # a list of patterns; empty is all
    Column("collections", JSON, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("image_tokens_per_minute", BigInteger),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
)

budgets = Table(
    "chiasm_budgets",
    metadata,
    Column("key_id", String(32), ForeignKey(keys.c.id), primary_key=True),
    Column("period", String(8), primary_key=True),  # day, month
    Column("of", String(16), primary_key=True),  # money, image_tokens, requests
    Column("limit", BigInteger, nullable=False),  # nanodollars, tokens, requests
)

# What a key has spent in a period, with all that is reserved. The period is its own name:
# 2026-11-25 is a day, 2026-11 a month.
spending = Table(
    "chiasm_spending",
    metadata,
    Column("key_id", String(32), ForeignKey(keys.c.id), primary_key=True),
    Column("period", String(10), primary_key=True),
    Column("money", BigInteger, nullable=False),
    Column("image_tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
)

# What is reserved and not yet settled. Amounts of zero: cleared by hand.
reservations = Table(
    "chiasm_reservations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("key_id", String(32), ForeignKey(keys.c.id), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("money", BigInteger, nullable=False),
    Column("image_tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Index("chiasm_reservations_key", "key_id", "created"),
)

# No foreign key to keys: a row is written even where its key came from elsewhere.
ledger = Table(
    "chiasm_ledger",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("request_id", String(128), nullable=False),  # the caller may have chosen it
    Column("time", BigInteger, nullable=False),
    Column("key_id", String(32)),
    Column("route", String(100), nullable=False),
    Column("alias", String(200), nullable=False),  # the model as it was asked for
    Column("provider", String(200), nullable=False),
    Column("model", String(200), nullable=False),  # the one that answered
    Column("status", BigInteger, nullable=False),  # HTTP's
    Column("error", String(100)),
    Column("images", BigInteger, nullable=False),
    Column("text_tokens", BigInteger, nullable=False),
    Column("image_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("answer_tokens", BigInteger, nullable=False),
    Column("planned_text_tokens", BigInteger),
    Column("planned_image_tokens", BigInteger),
    Column("planned_cost", BigInteger),
    Column("cost", BigInteger),
    Column("currency", String(3), nullable=False),
    Column("seconds_to_first_token", Double),
    Column("seconds", Double, nullable=False),
    Column("retries", BigInteger, nullable=False),
    Column("fallback", String(200)),
    Column("cache_hit", Boolean, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("content", Text),  # JSON, and only where the operator asked for it
    Index("chiasm_ledger_time", "time"),
    Index("chiasm_ledger_key", "key_id", "time"),
    Index("chiasm_ledger_model", "model", "time"),
    Index("chiasm_ledger_request", "request_id"),
)
