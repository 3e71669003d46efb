"""Analyses of trained networks: functions on tensors that return numbers, and on trained runs that return rows."""

from localprop.analysis.cka import cka_matrix, linear_cka, unbiased_hsic
from localprop.analysis.collapse import NeuralCollapse, neural_collapse
from localprop.analysis.confusion import RankCorrelation, confusion_rates, rank_correlation
from localprop.analysis.embeddings import (
    Neighbourhood,
    Spectrum,
    cosine_matrix,
    neighbourhood,
    principal_components,
    spectrum,
    t_sne,
)
from localprop.analysis.explain import ANALYSES, explain_run
from localprop.analysis.gradients import compare_gradients, gradient_cosine
from localprop.analysis.information import Information, gaussian_information, label_information
from localprop.analysis.probes import Probe, linear_probe
from localprop.analysis.retained import reconstructed_share
from localprop.analysis.saliency import saliency_maps, top_labels
from localprop.analysis.subject import BlockFeatures, Finding, Subject, block_features, load_subject
from localprop.analysis.super_labels import SuperLabelErrors, super_label_errors
from localprop.functional.filters import filter_images, first_layer

__all__ = [
    "ANALYSES",
    "BlockFeatures",
    "Finding",
    "Information",
    "Neighbourhood",
    "NeuralCollapse",
    "Probe",
    "RankCorrelation",
    "Spectrum",
    "Subject",
    "SuperLabelErrors",
    "block_features",
    "cka_matrix",
    "compare_gradients",
    "confusion_rates",
    "cosine_matrix",
    "explain_run",
    "filter_images",
    "first_layer",
    "gaussian_information",
    "gradient_cosine",
    "label_information",
    "linear_cka",
    "linear_probe",
    "load_subject",
    "neighbourhood",
    "neural_collapse",
    "principal_components",
    "rank_correlation",
    "reconstructed_share",
    "saliency_maps",
    "spectrum",
    "super_label_errors",
    "t_sne",
    "top_labels",
    "unbiased_hsic",
]
