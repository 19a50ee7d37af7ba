"""A mapping whose keys are attributes too: params of a task without a model, ``manager.state``, the default of
``manager.deps``."""

from typing import Any

__all__ = ["Bag"]


class Bag(dict[str, Any]):
    """``bag["a"]`` and ``bag.a`` are the same."""

    __slots__ = ("__weakref__",)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}, only: {', '.join(self) or 'nothing'}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None
