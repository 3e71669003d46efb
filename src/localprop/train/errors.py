"""How a run ends other than well."""


class TrainingError(RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""


class Interrupted(Exception):
    """Training was stopped by a signal, after writing a checkpoint."""
