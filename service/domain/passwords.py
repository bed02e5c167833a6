"""Which passwords an account may have. Hashing them is service/passwords.py."""

from typing import Final

from zxcvbn.frequency_lists import FREQUENCY_LISTS

from service.domain.errors import PasswordUnacceptable
from service.domain.users import Email

LONGEST_PASSWORD: Final = 128
"""In characters: no person's password is cut, and no one makes the service hash a book."""
COMMON_PASSWORDS: Final = frozenset(FREQUENCY_LISTS["passwords"])


def check_password(password: str, email: Email, min_length: int, pointer: str) -> None:
    """Raise PasswordUnacceptable, about the member at `pointer`, unless an account may have it.

    No composition rules: length and a list of what attackers try first do more
    (NIST SP 800-63B-4, 3.1.1.2).
    """
    length = len(password)
    if not min_length <= length <= LONGEST_PASSWORD:
        raise PasswordUnacceptable(
            f"A password has {min_length} to {LONGEST_PASSWORD} characters, this one {length}.",
            pointer=pointer,
        )
    lowered = password.lower()
    local_part = email.key.partition("@")[0]
    if lowered in COMMON_PASSWORDS:
        raise PasswordUnacceptable("This is one of the most common passwords.", pointer=pointer)
    if lowered in {email.key, email.shown.lower(), local_part}:
        raise PasswordUnacceptable("The password is the e-mail.", pointer=pointer)
