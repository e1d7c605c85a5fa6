"""The nodes ever seen and the ledger of requests. The ledger holds numbers, never a prompt or an answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("node", sa.String(128), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("finish_reason", sa.String(32), nullable=False),
        sa.Column("error_code", sa.String(128)),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.Column("total_s", sa.Float, nullable=False),
        sa.Column("queue_s", sa.Float),
        sa.Column("prefill_s", sa.Float),
        sa.Column("ttft_s", sa.Float),
        sa.Column("decode_s", sa.Float),
        sa.Column("is_part", sa.Boolean, nullable=False),
    )
    op.create_index("requests_by_time", "requests", ["received_at"])


def downgrade() -> None:
    op.drop_table("requests")
    op.drop_table("nodes")
