"""Every exception of the package.

All derive from :class:`GpubceError` and from the built-in exception that a caller would expect, so both
``except gpubce.errors.GpubceError`` and ``except ValueError`` work.
"""


class GpubceError(Exception):
    """The base of every error that gpubce raises."""


class OptionError(GpubceError, ValueError):
    """An option or a combination of options that has no meaning."""


class ShapeError(GpubceError, ValueError):
    """Shapes that do not fit together."""


class DtypeError(GpubceError, TypeError):
    """An element type that an argument cannot have."""


class ArrayError(GpubceError, TypeError):
    """An array that cannot be read or written, or arrays of two libraries or devices in one call."""


class InvalidValueError(GpubceError, ValueError):
    """A target or probability outside [0, 1], or a weight that is negative or not finite.

    ``argument``, ``index`` and ``value`` are the name of the argument, the position of its first invalid element in the
    shape of the predictions, and that element; None for arrays on a device, which are not searched.
    """

    def __init__(
        self,
        message: str,
        argument: str | None = None,
        index: tuple[int, ...] | None = None,
        value: object = None,
    ):
        super().__init__(message)
        self.argument, self.index, self.value = argument, index, value


class DeviceError(GpubceError, RuntimeError):
    """A device that was asked for and is not there."""


class StateError(GpubceError, ValueError):
    """A state that cannot be merged or finished."""


class FormatError(GpubceError, ValueError):
    """A file or document that cannot be read: which one, where, and what to do."""


class MissingDependencyError(GpubceError, ImportError):
    """An optional package that this call needs and that is not installed."""
