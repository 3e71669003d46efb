"""Objectives: each scores one block's output and knows nothing of other blocks or optimisers."""

from localprop.objectives.auxiliary import AuxiliaryNetwork
from localprop.objectives.base import Objective
from localprop.objectives.cascade import CascadeFeedback, CascadeOutput, CascadePrediction
from localprop.objectives.coarse import CoarsePrediction
from localprop.objectives.cross_entropy import CrossEntropy
from localprop.objectives.dictionary import DictionaryContrast, LabelDictionary
from localprop.objectives.feature_contrast import FeatureContrast, HeadContrast
from localprop.objectives.goodness import ChannelCompetition, ProjectedGoodness
from localprop.objectives.head_prediction import HeadPrediction
from localprop.objectives.heads import ConvolutionalHead, PooledLinear
from localprop.objectives.image import ImagePrediction
from localprop.objectives.label_code import CodePrediction, CodeSimilarity, LabelCode
from localprop.objectives.prediction import LinearPrediction
from localprop.objectives.probe import Probe
from localprop.objectives.random_target import RandomTargetProjection
from localprop.objectives.reconstruction import Reconstruction
from localprop.objectives.regression import LinearRegression, SquaredError
from localprop.objectives.rotation import RotationPrediction
from localprop.objectives.self_supervised import RowPrediction, SelfSupervised, ViewContrast
from localprop.objectives.similarity import SimilarityMatching
from localprop.objectives.weighted import WeightedSum

__all__ = [
    "AuxiliaryNetwork",
    "CascadeFeedback",
    "CascadeOutput",
    "CascadePrediction",
    "ChannelCompetition",
    "CoarsePrediction",
    "CodePrediction",
    "CodeSimilarity",
    "ConvolutionalHead",
    "CrossEntropy",
    "DictionaryContrast",
    "FeatureContrast",
    "HeadContrast",
    "HeadPrediction",
    "ImagePrediction",
    "LabelCode",
    "LabelDictionary",
    "LinearPrediction",
    "LinearRegression",
    "Objective",
    "PooledLinear",
    "Probe",
    "ProjectedGoodness",
    "RandomTargetProjection",
    "Reconstruction",
    "RotationPrediction",
    "RowPrediction",
    "SelfSupervised",
    "SimilarityMatching",
    "SquaredError",
    "ViewContrast",
    "WeightedSum",
]
