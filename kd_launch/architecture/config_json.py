"""ConfigJson: the keys of a model's config.json, read one by one, with errors that name file, key and value."""

from collections.abc import Mapping

from kd_launch.errors import SpecError

_LARGEST = 2**31 - 1  # no shape of a model is larger; keeps nonsense out of the arithmetic


class ConfigJson:
    """The mapping of a config.json, the place it came from, and what the model type takes for absent keys.

    As in transformers, an absent key gives the model type's default and an explicit null gives "not set".
    """

    def __init__(self, keys: Mapping[str, object], where: str, defaults: Mapping[str, object] | None = None) -> None:
        self.where = where
        self._keys = {**(defaults or {}), **keys}

    def get(self, *names: str) -> object:
        """The value under the first of the names that is set, else None."""
        return next((self._keys[name] for name in names if self._keys.get(name) is not None), None)

    def count(self, *names: str, otherwise: int | None = None, minimum: int = 1) -> int:
        """A whole number; where none of the names is set `otherwise`, else an error that says which key is missing."""
        value = self.get(*names)
        if value is None:
            if otherwise is None:
                raise self.error(names[0], f"is missing{f' (or {names[1]})' if names[1:] else ''}")
            return otherwise
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= _LARGEST:
            raise self.error(names[0], f"must be a whole number from {minimum} to {_LARGEST}, is {value!r}")
        return value

    def optional_count(self, *names: str) -> int | None:
        """A whole number of at least 1, or None where it is not set."""
        return self.count(*names) if self.get(*names) is not None else None

    def optional_number(self, name: str) -> float | None:
        """A number above 0, or None where it is not set."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(name, f"must be a number above 0, is {value!r}")
        return float(value)

    def flag(self, name: str, otherwise: bool) -> bool:
        """true or false; `otherwise` where it is not set."""
        value = self.get(name)
        if value is None:
            return otherwise
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, is {value!r}")
        return value

    def items(self, name: str) -> list[object]:
        """A list; empty where it is not set."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise self.error(name, f"must be a list, is {value!r}")
        return list(value)

    def error(self, key: str, problem: str) -> SpecError:
        """The error about one key, for the caller to raise."""
        return SpecError(f"{self.where}: {key}: {problem}")
