"""Properties that are computed when they are first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class made_once(Generic[Result]):
    """functools.cached_property without the lock that it has in Python 3.11: it was held in one of 20 children forked
    beside a thread with many calls, and they waited for it forever."""

    def __init__(self, make: Callable[[Any], Result]):
        self.make = make
        self.__doc__ = make.__doc__

    def __get__(self, instance: Any, owner: type) -> Result:
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self.make.__name__] = self.make(instance)
        return value
