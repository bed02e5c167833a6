"""What an access token allows (RFC 6749, 3.3)."""

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final

from service.domain.users import Role


class Scope(StrEnum):
    """One permission. A token never allows more than its user, or its client, may do."""

    PROFILE = "profile"
    CODES_READ = "codes:read"
    CODES_WRITE = "codes:write"
    REFERRALS_READ = "referrals:read"
    REWARDS_READ = "rewards:read"
    EVENTS_WRITE = "events:write"
    PROGRAMME_READ = "programme:read"
    REWARDS_WRITE = "rewards:write"
    PROGRAMME_MANAGE = "programme:manage"
    ADMIN = "admin"

    @property
    def meaning(self) -> str:
        """What users are asked to allow."""
        return _MEANINGS[self]

    @property
    def own_meaning(self) -> str:
        """What a client may do on its own behalf; only for those in OF_CLIENTS."""
        return _OWN_MEANINGS[self]


_MEANINGS: Final = {
    Scope.PROFILE: "See your account, your sessions and your recent activity, "
    "and sign you out of this app",
    Scope.CODES_READ: "See your referral code",
    Scope.CODES_WRITE: "Create, replace and delete your referral code",
    Scope.REFERRALS_READ: "See who registered with your code",
    Scope.REWARDS_READ: "See who referred you, and your rewards",
    Scope.EVENTS_WRITE: "Report what participants did, if you are an admin",
    Scope.PROGRAMME_READ: "See the programmes, their participants and referrals, "
    "if you are an admin",
    Scope.REWARDS_WRITE: "Pay rewards out and adjust balances, if you are an admin",
    Scope.PROGRAMME_MANAGE: "Change the rules of programmes, review referrals and manage webhooks, "
    "if you are an admin",
    Scope.ADMIN: "Manage the accounts of all users, if you are an admin",
}
_OWN_MEANINGS: Final = {
    Scope.REFERRALS_READ: "See who registered with anyone's code",
    Scope.EVENTS_WRITE: "Report participants, sign-ups and events",
    Scope.PROGRAMME_READ: "See the programmes, their participants and referrals",
    Scope.REWARDS_WRITE: "Pay rewards out and adjust balances",
    Scope.PROGRAMME_MANAGE: "Change the rules of programmes, review referrals and manage webhooks",
    Scope.ADMIN: "Manage the accounts of all users, admins included",
}
OF_CLIENTS: Final = frozenset(_OWN_MEANINGS)
"""What a client can do on its own behalf: it has no account, hence no profile and no code."""
FOR_CLIENTS: Final = OF_CLIENTS - {Scope.REFERRALS_READ}
"""What only clients and admins can do."""
_OF_USERS: Final = frozenset(Scope) - FOR_CLIENTS


def scopes_of(role: Role) -> frozenset[Scope]:
    """Return all that a user of the role may do."""
    return frozenset(Scope) if role is Role.ADMIN else _OF_USERS


def parse_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes in a space-separated list; raise ValueError at an unknown one."""
    return frozenset(map(Scope, text.split()))


def known_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes in a space-separated list, without those that only a newer release has."""
    listed = set(text.split())
    return frozenset(scope for scope in Scope if scope.value in listed)


def to_text(scopes: Iterable[Scope]) -> str:
    """Return the scopes as tokens and answers list them."""
    wanted: Collection[Scope] = set(scopes)
    return " ".join(scope for scope in Scope if scope in wanted)
