"""The exception tree. Every message says what was expected, what was found and what to do."""


class LichenError(Exception):
    """Base of every error that lichen raises on purpose."""


class StreamError(LichenError):
    """The bytes are not a valid lichen stream, or not one that this build can decode."""


class ImageError(LichenError):
    """The picture cannot be encoded: its size, mode or file is not supported."""


class ContractError(LichenError):
    """A Program breaks the contract: a shape, a range or an accumulator bound."""


class UnsupportedError(ContractError):
    """A Program, or a size, is valid, but this executor or accelerator has no means for it."""


class ModelError(LichenError):
    """A model file is missing, damaged, or not the one that a stream was made with."""


class DeviceError(LichenError):
    """An executor or an accelerator is absent or failed."""
