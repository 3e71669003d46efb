"""Train deep networks in PyTorch without end-to-end backpropagation."""

from localprop import data, methods, models, objectives, rules
from localprop.methods import Method
from localprop.network import LocalNetwork
from localprop.objectives import Objective
from localprop.rules import Rule
from localprop.split import split
from localprop.types import BlockSpec, BlockStep, LocalBatch, LocalLoss

__version__ = "0.1.0"

__all__ = [
    "BlockSpec",
    "BlockStep",
    "LocalBatch",
    "LocalLoss",
    "LocalNetwork",
    "Method",
    "Objective",
    "Rule",
    "data",
    "methods",
    "models",
    "objectives",
    "rules",
    "split",
]
