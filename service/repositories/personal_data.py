"""The SQL of exporting what is stored about an account: without hashes and data of others."""

from typing import Any, Final
from uuid import UUID

from service.domain.pages import Cursor
from service.repositories.connection import LAST_ID, Repository

ACCOUNT: Final = """
    SELECT user_id AS id, email, email_confirmed_at, role, promoted_at, created_at, disabled_at,
           password_hash IS NOT NULL AS has_password, email_verdict, email_verdict_source,
           email_checked_at
      FROM users
     WHERE user_id = $1
       AND erased_at IS NULL
"""

IDENTITIES: Final = """
    SELECT issuer, subject, email, created_at
      FROM identities
     WHERE user_id = $1
     ORDER BY created_at, issuer, subject
"""

SESSIONS: Final = """
    SELECT session_id AS id, client_id, origin, scopes, user_agent, created_at, refreshed_at,
           expires_at, ended_at
      FROM sessions
     WHERE user_id = $1
     ORDER BY created_at, session_id
"""

GRANTS: Final = """
    SELECT client_id, redirect_uri, scopes, created_at, redeemed_at
      FROM authorization_codes
     WHERE user_id = $1
     ORDER BY created_at
"""

MAIL_TOKENS: Final = """
    SELECT purpose, email, created_at, expires_at
      FROM mail_tokens
     WHERE user_id = $1
     ORDER BY created_at
"""

# Not the identity that was linked: who refuses one may not be whose it is.
ACCOUNT_CHANGES: Final = """
    SELECT kind, email, issuer, undone,
           CASE WHEN isfinite(expires_at) THEN expires_at END AS expires_at
      FROM account_changes
     WHERE user_id = $1
     ORDER BY number
"""

# Of the address: by whom they were made is decided when one is confirmed.
CLAIMS: Final = """
    SELECT email, issuer, created_at, expires_at
      FROM claims
     WHERE email_key = (SELECT email_key FROM users WHERE user_id = $1)
     ORDER BY created_at, claim_id
"""

CODES: Final = """
    SELECT c.code, c.created_at, c.expires_at, c.ended_at, c.max_uses,
           c.uses + COALESCE((SELECT sum(u.uses) FROM referral_code_uses u
                               WHERE u.referral_code_id = c.referral_code_id), 0)::bigint AS uses
      FROM referral_codes c
     WHERE c.owner_id = $1
     ORDER BY c.created_at, c.referral_code_id
"""

PARTICIPANT: Final = """
    SELECT g.key AS programme, p.trusted, p.blocked_at, p.created_at, s.public_name,
           s.qualified AS referrals_qualified
      FROM participants p
      JOIN programmes g USING (programme_id)
      LEFT JOIN standings s USING (participant_id)
     WHERE p.participant_id = $1
"""

REFERRAL: Final = """
    SELECT referrer_id, code, registered_at, state, reason, state_changed_at, window_ends_at
      FROM referrals
     WHERE user_id = $1
"""

# Not who made them: that is the id of another.
DECISIONS: Final = """
    SELECT sequence, state, reason, event_id, detail, decided_at
      FROM decisions
     WHERE referral_id = $1
     ORDER BY sequence
"""

EVENTS: Final = """
    SELECT event_id, external_id AS id, type, amount, unit, refunds, occurred_at, received_at
      FROM events
     WHERE participant_id = $1
     ORDER BY occurred_at, event_id
"""

SIGNALS: Final = """
    SELECT kind, seen_at
      FROM signals
     WHERE participant_id = $1
     ORDER BY seen_at, kind
"""

REFERRALS: Final = """
    SELECT user_id AS id, code, registered_at
      FROM referrals
     WHERE referrer_id = $1
       AND (registered_at, user_id) < (coalesce($2::timestamptz, 'infinity'), $3)
     ORDER BY registered_at DESC, user_id DESC
     LIMIT $4
"""

SECURITY_EVENTS: Final = """
    SELECT event, occurred_at, address, user_agent
      FROM security_events
     WHERE user_id = $1
     ORDER BY occurred_at, security_event_id
"""
# Not of which referral: a percentage would tell what a friend has spent.
REWARDS: Final = """
    SELECT rule, version, unit, amount, reversed, state, held, available_at, created_at
      FROM rewards
     WHERE participant_id = $1
     ORDER BY created_at, reward_id
"""

BALANCES: Final = """
    SELECT unit, pending, available, redeemed
      FROM balances
     WHERE participant_id = $1
     ORDER BY unit
"""

TRANSFERS: Final = """
    SELECT kind, from_account AS "from", to_account AS "to", unit, amount, external_id, note,
           created_at
      FROM transfers
     WHERE participant_id = $1
     ORDER BY created_at, transfer_id
"""
_OF_USER: Final = {
    "identities": IDENTITIES,
    "sessions": SESSIONS,
    "granted_to_clients": GRANTS,
    "mails_under_way": MAIL_TOKENS,
    "account_changes": ACCOUNT_CHANGES,
    "unconfirmed_registrations": CLAIMS,
    "referral_codes": CODES,
    "security_events": SECURITY_EVENTS,
    "participant": PARTICIPANT,
    "signals": SIGNALS,
    "referral": REFERRAL,
    "decisions": DECISIONS,
    "events": EVENTS,
    "rewards": REWARDS,
    "balances": BALANCES,
    "transfers": TRANSFERS,
}
Row = dict[str, Any]


class PersonalDataRepository(Repository):
    """What is stored about one person."""

    async def account(self, user_id: UUID) -> Row | None:
        row = await self._connection.fetchrow(ACCOUNT, user_id)
        return None if row is None else dict(row)

    async def of_user(self, user_id: UUID) -> dict[str, list[Row]]:
        """Return the rest, except the referrals, by its name in the export."""
        return {name: await self._all(text, user_id) for name, text in _OF_USER.items()}

    async def referrals(self, user_id: UUID, limit: int, after: Cursor | None) -> list[Row]:
        """Return up to `limit` of those who registered with the user's codes, newest first."""
        at, last_id = (after.at, after.row_id) if after else (None, LAST_ID)
        return await self._all(REFERRALS, user_id, at, last_id, limit)

    async def _all(self, statement: str, *arguments: Any) -> list[Row]:
        return [dict(row) for row in await self._connection.fetch(statement, *arguments)]
