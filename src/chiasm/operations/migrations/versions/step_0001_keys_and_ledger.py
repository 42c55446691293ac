"""Keys, their budgets, what they spent, and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIG = sa.BigInteger


def upgrade() -> None:
    """From an empty database."""
    op.create_table(
        "chiasm_keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("collections", sa.JSON, nullable=False),
        sa.Column("requests_per_minute", _BIG),
        sa.Column("image_tokens_per_minute", _BIG),
        sa.Column("created", _BIG, nullable=False),
        sa.Column("expires", _BIG),
        sa.Column("revoked", _BIG),
        sa.PrimaryKeyConstraint("id", name="chiasm_keys_pk"),
        sa.UniqueConstraint("digest", name="chiasm_keys_digest_unique"),
    )
    op.create_table(
        "chiasm_budgets",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("of", sa.String(16), nullable=False),
        sa.Column("limit", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "period", "of", name="chiasm_budgets_pk"),
        sa.ForeignKeyConstraint(["key_id"], ["chiasm_keys.id"], name="chiasm_budgets_key_id_fk"),
    )
    op.create_table(
        "chiasm_spending",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("money", _BIG, nullable=False),
        sa.Column("image_tokens", _BIG, nullable=False),
        sa.Column("requests", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "period", name="chiasm_spending_pk"),
        sa.ForeignKeyConstraint(["key_id"], ["chiasm_keys.id"], name="chiasm_spending_key_id_fk"),
    )
    op.create_table(
        "chiasm_reservations",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("created", _BIG, nullable=False),
        sa.Column("money", _BIG, nullable=False),
        sa.Column("image_tokens", _BIG, nullable=False),
        sa.Column("requests", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name="chiasm_reservations_pk"),
        sa.ForeignKeyConstraint(
            ["key_id"], ["chiasm_keys.id"], name="chiasm_reservations_key_id_fk"
        ),
    )
    op.create_index("chiasm_reservations_key", "chiasm_reservations", ["key_id", "created"])
    _create_ledger()


def _create_ledger() -> None:
    op.create_table(
        "chiasm_ledger",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("time", _BIG, nullable=False),
        sa.Column("key_id", sa.String(32)),
        sa.Column("route", sa.String(100), nullable=False),
        sa.Column("alias", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(200), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("status", _BIG, nullable=False),
        sa.Column("error", sa.String(100)),
        sa.Column("images", _BIG, nullable=False),
        sa.Column("text_tokens", _BIG, nullable=False),
        sa.Column("image_tokens", _BIG, nullable=False),
        sa.Column("cached_tokens", _BIG, nullable=False),
        sa.Column("answer_tokens", _BIG, nullable=False),
        sa.Column("planned_text_tokens", _BIG),
        sa.Column("planned_image_tokens", _BIG),
        sa.Column("planned_cost", _BIG),
        sa.Column("cost", _BIG),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("seconds_to_first_token", sa.Double),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("retries", _BIG, nullable=False),
        sa.Column("fallback", sa.String(200)),
        sa.Column("cache_hit", sa.Boolean, nullable=False),
        sa.Column("streamed", sa.Boolean, nullable=False),
        sa.Column("content", sa.Text),
        sa.PrimaryKeyConstraint("id", name="chiasm_ledger_pk"),
    )
    op.create_index("chiasm_ledger_time", "chiasm_ledger", ["time"])
    op.create_index("chiasm_ledger_key", "chiasm_ledger", ["key_id", "time"])
    op.create_index("chiasm_ledger_model", "chiasm_ledger", ["model", "time"])
    op.create_index("chiasm_ledger_request", "chiasm_ledger", ["request_id"])


def downgrade() -> None:
    """To an empty database."""
    for table in ("ledger", "reservations", "spending", "budgets", "keys"):
        op.drop_table(f"chiasm_{table}")
