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


def memory_ran_out(error: BaseException) -> str:
    """Return what to tell the user about an error that `is_out_of_memory`."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"not enough memory ({reason}); try smaller images (--image-size), a smaller network (--model.width)"
