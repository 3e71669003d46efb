"""Objectives: each scores one block's output and knows nothing of other blocks or optimisers."""

from localprop.objectives.auxiliary import AuxiliaryNetwork
from localprop.objectives.base import Objective
from localprop.objectives.coarse import CoarsePrediction
from localprop.objectives.cross_entropy import CrossEntropy
from localprop.objectives.dictionary import DictionaryContrast, LabelDictionary
from localprop.objectives.feature_contrast import FeatureContrast
from localprop.objectives.image import ImagePrediction
from localprop.objectives.prediction import LinearPrediction
from localprop.objectives.probe import Probe
from localprop.objectives.rotation import RotationPrediction

__all__ = [
    "AuxiliaryNetwork",
    "CoarsePrediction",
    "CrossEntropy",
    "DictionaryContrast",
    "FeatureContrast",
    "ImagePrediction",
    "LabelDictionary",
    "LinearPrediction",
    "Objective",
    "Probe",
    "RotationPrediction",
]
