"""Objectives: each scores one block's output and knows nothing of other blocks or optimisers."""

from localprop.objectives.base import Objective
from localprop.objectives.cascade import CascadeFeedback, CascadeOutput, CascadePrediction
from localprop.objectives.cross_entropy import CrossEntropy
from localprop.objectives.deep_prediction import DeepPrediction
from localprop.objectives.dictionary import DictionaryContrast, LabelDictionary
from localprop.objectives.feature_contrast import FeatureContrast
from localprop.objectives.prediction import LinearPrediction
from localprop.objectives.probe import Probe

__all__ = [
    "CascadeFeedback",
    "CascadeOutput",
    "CascadePrediction",
    "CrossEntropy",
    "DeepPrediction",
    "DictionaryContrast",
    "FeatureContrast",
    "LabelDictionary",
    "LinearPrediction",
    "Objective",
    "Probe",
]
