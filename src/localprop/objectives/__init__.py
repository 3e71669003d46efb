"""Objectives: each scores one block's output and knows nothing of other blocks or optimisers."""

from localprop.objectives.base import Objective
from localprop.objectives.cross_entropy import CrossEntropy
from localprop.objectives.dictionary import DictionaryContrast, LabelDictionary
from localprop.objectives.feature_contrast import FeatureContrast
from localprop.objectives.prediction import LinearPrediction
from localprop.objectives.probe import Probe
from localprop.objectives.random_target import RandomTargetProjection

__all__ = [
    "CrossEntropy",
    "DictionaryContrast",
    "FeatureContrast",
    "LabelDictionary",
    "LinearPrediction",
    "Objective",
    "Probe",
    "RandomTargetProjection",
]
