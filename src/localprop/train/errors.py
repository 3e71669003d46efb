"""How a run ends other than well."""

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


class TrainingError(RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""


class Interrupted(Exception):
    """Training was stopped by a signal, after writing a checkpoint."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out; on the host PyTorch raises a plain RuntimeError for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )
