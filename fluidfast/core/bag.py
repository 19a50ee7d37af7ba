"""A bag of values that reads as a mapping and as attributes: ``manager.state`` and the default of ``manager.deps``."""

from typing import Any

__all__ = ["State"]


class State(dict[str, Any]):
    """``state["db"]`` and ``state.db`` are the same value."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"nothing is stored as {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None
