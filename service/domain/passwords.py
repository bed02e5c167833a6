"""Which passwords an account may have. Hashing them is service/passwords.py."""

import functools
import unicodedata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final

from service.domain.errors import PasswordUnacceptable
from service.domain.users import Email

LONGEST_PASSWORD: Final = 128
"""In characters: no person's password is cut, and no one makes the service hash a book."""
LONGEST_DECOMPOSITION: Final = 4
"""In characters, of one character (Unicode Standard Annex 15)."""


def normalise_password(password: str) -> str:
    """Return the form that is hashed: the same for what looks the same, from whatever keyboard.

    RFC 8265's OpaqueString: spaces of all kinds become U+0020, and what may be composed is (NFC).
    Two lines of unicodedata, where precis-i18n would add refusals: of control characters, which
    old passwords have, and of characters that are newer than Python's tables. A text that is too
    long in any form stays as it is, because composing a book takes long.
    """
    if len(password) > LONGEST_PASSWORD * LONGEST_DECOMPOSITION:
        return password
    spaced = (" " if unicodedata.category(sign) == "Zs" else sign for sign in password)
    return unicodedata.normalize("NFC", "".join(spaced))


@functools.cache
def _common_passwords() -> str:
    """Return zxcvbn's list of common passwords, in lines.

    Of its lists only this one is wanted, and none of the tables that importing it makes of them,
    which hold 12 MiB of every worker.
    """
    package = find_spec("zxcvbn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).with_name("frequency_lists.py")
    lists = spec_from_file_location("frequency_lists", file)
    assert lists is not None
    assert lists.loader is not None
    module = module_from_spec(lists)
    lists.loader.exec_module(module)
    return "\n".join(["", *module.FREQUENCY_LISTS["passwords"], ""])


def is_common(password: str) -> bool:
    """Return whether the password, in lower case, is one of those that attackers try first."""
    return "\n" not in password and f"\n{password}\n" in _common_passwords()


def check_password(password: str, email: Email, min_length: int, pointer: str) -> None:
    """Raise PasswordUnacceptable, about the member at `pointer`, unless an account may have it.

    No composition rules: length and a list of what attackers try first do more
    (NIST SP 800-63B-4, 3.1.1.2).
    """
    password = normalise_password(password)
    length = len(password)
    if not min_length <= length <= LONGEST_PASSWORD:
        raise PasswordUnacceptable(
            f"A password has {min_length} to {LONGEST_PASSWORD} characters, this one {length}.",
            pointer=pointer,
        )
    lowered = password.lower()
    local_part = email.key.partition("@")[0]
    if is_common(lowered):
        raise PasswordUnacceptable("This is one of the most common passwords.", pointer=pointer)
    if lowered in {email.key, email.shown.lower(), local_part}:
        raise PasswordUnacceptable("The password is the e-mail.", pointer=pointer)
