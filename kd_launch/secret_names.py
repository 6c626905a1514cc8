"""What looks like a secret, by its name or by itself: what stands in a run folder is for every reader of its disk."""

import re
from collections.abc import Mapping

_NAME = (
    r"(?:[A-Za-z0-9_]*(?:TOKEN|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)"
    r"|(?:[A-Za-z0-9_]*_)?(?:KEY|ACCESS_KEY_ID|PWD))"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# A value as it is: no switch, and no path.
_VALUE = re.compile(r"[^\s/~.$]\S{7,}")
# In shell lines: where a word of eight letters stands in the text itself, and no path, variable or command gives it.
_WORD = r"[^\s'\"$`/~.][^\s'\"$`]{7,}"
_ASSIGNMENT = re.compile(rf"(?:^|[\s;&,=])(?P<name>{_NAME})=['\"]?{_WORD}", re.IGNORECASE | re.MULTILINE)
# Tokens that their makers have given a shape, and passwords in addresses.
_SHAPES = {
    "a token of Hugging Face (hf_...)": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub": r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{30,}",
    "a key of AWS (AKIA...)": r"\bAKIA[0-9A-Z]{16}\b",
    "a password in an address": r"://[^\s/:@'\"]+:[^\s/@'\"$]+@",
}
_LONG_ENOUGH = 8
"""What is shorter stands in many texts by chance."""


def is_secret(name: str, value: str) -> bool:
    """Whether a variable's value must not be shown or written: by its name, unless it is a switch or a path.

    >>> is_secret("HF_TOKEN", "hf_abcdefgh"), is_secret("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    (True, False)
    """
    return _SECRET_NAME.fullmatch(name) is not None and _VALUE.match(value) is not None


def secret_in(text: str) -> str | None:
    """What gives away a secret in shell lines, or in an option: the name of its variable, or what it is by its shape;
    None: there is none.

    >>> secret_in("export HF_TOKEN=hf_abcdefgh"), secret_in("export HF_TOKEN=$(< ~/.token)")
    ('HF_TOKEN', None)
    """
    found = _ASSIGNMENT.search(text)
    return found["name"] if found else shape_of_secret(text)


def shape_of_secret(text: str) -> str | None:
    """What a text holds that is a secret whatever its name; None: nothing.

    >>> shape_of_secret("http://me:secret@proxy:3128")
    'a password in an address'
    """
    return next((what for what, shape in _SHAPES.items() if re.search(shape, text)), None)


def without_secrets(text: str, environ: Mapping[str, str]) -> str:
    """The text with *** for the secrets of the environment.

    >>> without_secrets("401 for hf_abcdefgh", {"HF_TOKEN": "hf_abcdefgh"})
    '401 for ***'
    """
    secrets = {value for name, value in environ.items() if len(value) >= _LONG_ENOUGH and is_secret(name, value)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
