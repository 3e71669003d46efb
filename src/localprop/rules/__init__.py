"""Rules: each turns a batch into gradients, block after block, and knows nothing of optimisers or files."""

from localprop.rules.averaged import GreedyAveraged
from localprop.rules.backprop import Backprop
from localprop.rules.base import Rule
from localprop.rules.direct_feedback import DirectFeedback
from localprop.rules.feedback import FeedbackAlignment
from localprop.rules.greedy import Greedy

__all__ = ["Backprop", "DirectFeedback", "FeedbackAlignment", "Greedy", "GreedyAveraged", "Rule"]
