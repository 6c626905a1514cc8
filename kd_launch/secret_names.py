"""Which variables hold secrets, by their names: what is written to a run folder is for every reader of its disk."""

import re

_NAME = r"(?:[A-Za-z0-9_]*_)?(?:TOKEN|KEY|ACCESS_KEY_ID|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# Where a word of eight letters stands in the text itself, and no path, variable or command that gives it.
_VALUE = r"[^\s'\"$`/~.][^\s'\"$`]{7,}"
_ASSIGNMENT = re.compile(rf"(?:^|[\s;&])(?P<name>{_NAME})=['\"]?{_VALUE}", re.IGNORECASE | re.MULTILINE)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable's value must not be shown or written: by its name, unless it is a switch or a path.

    >>> is_secret("HF_TOKEN", "hf_abcdefgh"), is_secret("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    (True, False)
    """
    return _SECRET_NAME.fullmatch(name) is not None and re.match(_VALUE, value) is not None


def secret_in(shell: str) -> str | None:
    """The name of the first variable that shell lines give a secret in plain words; None: there is none.

    >>> secret_in("export HF_TOKEN=hf_abcdefgh"), secret_in("export HF_TOKEN=$(< ~/.token)")
    ('HF_TOKEN', None)
    """
    found = _ASSIGNMENT.search(shell)
    return found["name"] if found else None
