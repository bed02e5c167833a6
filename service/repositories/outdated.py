"""The SQL of deleting rows that have expired."""

from datetime import datetime
from typing import Final

from service.repositories.connection import Repository, rows_in


def _delete(table: str, key: str, time: str) -> str:
    return f"""
        DELETE FROM {table}
         WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {time} <= $1 ORDER BY {time} LIMIT 1000)
    """


def _delete_unlocked(table: str, key: str, time: str) -> str:
    """For rows that requests lock."""
    return f"""
        DELETE FROM {table}
         WHERE {key} = ANY (ARRAY(
            SELECT {key} FROM {table} WHERE {time} <= $1 ORDER BY {time} LIMIT 1000
               FOR UPDATE SKIP LOCKED
         ))
    """


ACCOUNT_CHANGES: Final = _delete("account_changes", "account_change_id", "expires_at")
AUTHORIZATION_CODES: Final = _delete("authorization_codes", "code_hash", "expires_at")
CLAIMS: Final = _delete("claims", "claim_id", "expires_at")
ENDED_SESSIONS: Final = _delete_unlocked("sessions", "session_id", "ended_at")
EXPIRED_SESSIONS: Final = _delete_unlocked("sessions", "session_id", "expires_at")
IDEMPOTENCY_KEYS: Final = _delete("idempotency_keys", "scope, idempotency_key", "created_at")
MAIL_TOKENS: Final = _delete("mail_tokens", "token_hash", "expires_at")
MAILBOXES: Final = _delete("mailboxes", "mailbox_hash", "counted_at")
PARKED_JOBS: Final = _delete("jobs", "job_id", "parked_at")
SECURITY_EVENTS: Final = _delete("security_events", "security_event_id", "occurred_at")
SIGN_INS: Final = _delete("sign_ins", "state_hash", "expires_at")
WEBHOOK_ENDPOINTS: Final = _delete("webhook_endpoints", "endpoint_id", "deleted_at")
# With their deliveries and attempts.
WEBHOOK_MESSAGES: Final = _delete("webhook_messages", "message_id", "created_at")


class OutdatedRepository(Repository):
    """Expired rows of any table."""

    async def delete(self, statement: str, before: datetime) -> int:
        """Delete up to 1,000 rows with one of this module's statements; return how many."""
        return rows_in(await self._connection.execute(statement, before))
