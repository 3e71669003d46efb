"""Rules: each turns a batch into gradients, block after block, and knows nothing of optimisers or files."""

from localprop.rules.averaged import GreedyAveraged
from localprop.rules.backprop import Backprop
from localprop.rules.base import Rule
from localprop.rules.cascade import Cascade, CascadeClosedForm
from localprop.rules.clusters import Clusters
from localprop.rules.critic import LocalCritic
from localprop.rules.direct_feedback import DirectFeedback
from localprop.rules.feedback import FeedbackAlignment
from localprop.rules.greedy import Greedy
from localprop.rules.layerwise import Layerwise
from localprop.rules.mixed import GreedyMixed
from localprop.rules.momentum import GreedyMomentum
from localprop.rules.overlap import Overlap, Window
from localprop.rules.patches import PatchDictionaries
from localprop.rules.rotated import GreedyRotated
from localprop.rules.self_supervised import EndToEndPatches, GreedyPatches, GreedyViews
from localprop.rules.synthetic import SyntheticGradients
from localprop.rules.target import TargetPropagation

__all__ = [
    "Backprop",
    "Cascade",
    "CascadeClosedForm",
    "Clusters",
    "DirectFeedback",
    "EndToEndPatches",
    "FeedbackAlignment",
    "Greedy",
    "GreedyAveraged",
    "GreedyMixed",
    "GreedyMomentum",
    "GreedyPatches",
    "GreedyRotated",
    "GreedyViews",
    "Layerwise",
    "LocalCritic",
    "Overlap",
    "PatchDictionaries",
    "Rule",
    "SyntheticGradients",
    "TargetPropagation",
    "Window",
]
