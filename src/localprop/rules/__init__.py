"""Rules: each turns a batch into gradients, block after block, and knows nothing of optimisers or files."""

from localprop.rules.averaged import GreedyAveraged
from localprop.rules.backprop import Backprop
from localprop.rules.base import Rule
from localprop.rules.cascade import Cascade, CascadeClosedForm
from localprop.rules.greedy import Greedy
from localprop.rules.layerwise import Layerwise
from localprop.rules.patches import PatchDictionaries

__all__ = [
    "Backprop",
    "Cascade",
    "CascadeClosedForm",
    "Greedy",
    "GreedyAveraged",
    "Layerwise",
    "PatchDictionaries",
    "Rule",
]
