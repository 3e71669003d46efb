"""What the parity with the twins does not show of similarity matching, label codes, weighted sums and InfoPro."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localprop
from localprop.functional import feedback
from localprop.functional.information import linear_schedule
from localprop.functional.similarity import adjusted_cosine, label_similarity, similarity_loss
from localprop.objectives import (
    CodePrediction,
    ConvolutionalHead,
    CrossEntropy,
    LabelCode,
    LinearPrediction,
    Reconstruction,
    SimilarityMatching,
    WeightedSum,
)
from localprop.types import BlockSpec, LocalBatch

CLASSES = 3
Y = torch.tensor([0, 1, 2, 0, 1])
SHAPES = {"map": (5, 4, 4), "tokens": (6, 5), "flat": (12,)}


def spec_of(shape: tuple[int, ...], activation: tuple[int, ...] | None = None) -> BlockSpec:
    return BlockSpec(0, 2, "block", (1, 4, 4), shape, -1 if len(shape) == 2 else 0, 1, CLASSES, activation or shape)


def test_one_hot_features_have_the_similarity_of_their_labels():
    onehot = F.one_hot(Y, CLASSES).double()
    wanted = label_similarity(Y, CLASSES).double()
    torch.testing.assert_close(adjusted_cosine(onehot), wanted, rtol=1e-6, atol=1e-6)
    assert wanted[0].tolist() == pytest.approx([1, -0.5, -0.5, 1, -0.5])
    assert float(similarity_loss(onehot, wanted)) < 1e-12


def test_constant_rows_and_dead_channels_give_finite_gradients():
    for shape in SHAPES.values():
        h = torch.zeros(5, *shape, requires_grad=True)
        SimilarityMatching(spec_of(shape))(h, LocalBatch(Y, h)).loss.backward()
        assert bool(h.grad.isfinite().all())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_gradient_reaches_h_through_the_trained_decoder(shape: tuple[int, ...]):
    """The error at the decoder's output goes back through the fixed matrix B alone."""
    torch.manual_seed(0)
    objective = CodePrediction(spec_of(shape), LabelCode(CLASSES, 7)).double()
    nn.init.normal_(objective.weight)
    h = torch.randn(5, *shape, dtype=torch.float64, requires_grad=True)
    objective(h, LocalBatch(Y, h)).loss.backward()
    bits = (objective.code.codes[Y] > 0).double()
    error = ((h.detach().flatten(1) @ objective.weight.T + objective.bias).sigmoid() - bits) / bits.numel()
    torch.testing.assert_close(h.grad.flatten(1), error @ objective.feedback, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(objective.weight.grad, error.T @ h.detach().flatten(1), rtol=1e-9, atol=1e-12)

    objective.feedback.zero_()
    h.grad = objective.weight.grad = None
    objective(h, LocalBatch(Y, h)).loss.backward()
    assert not bool(h.grad.any())
    assert bool(objective.weight.grad.any())


@pytest.mark.parametrize("method", ["pred-bpf", "sim-bpf", "predsim-bpf"])
def test_backprop_free_methods_send_no_error_through_what_they_train(method: str):
    """With the decoders' errors switched off, what is left of a block's gradient does not depend on the decoder."""
    torch.manual_seed(0)
    net = localprop.models.vgg8b((1, 16, 16), CLASSES, width=0.03)
    x, y = torch.randn(6, 1, 16, 16), torch.arange(6) % CLASSES
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=x)
    for name, buffer in rule.objectives.named_buffers():
        if name.endswith("feedback"):
            buffer.zero_()

    def gradients() -> list[Tensor]:
        found = []
        for step in rule.steps(x, y):
            if step.key[0] < len(net) - 1:
                found += [p.grad.clone() for p in net.blocks[step.key[0]].parameters()]
            rule.clear_gradients()
        return found

    before = gradients()
    assert any(bool(gradient.any()) for gradient in before) == (method != "pred-bpf")
    for objective in list(rule.objectives)[:-1]:
        for parameter in objective.parameters():
            nn.init.normal_(parameter)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), before, strict=True))


def test_feedback_linear_passes_gradcheck_where_the_feedback_is_the_weight():
    x, weight, bias = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((4, 3), (2, 3), (2,)))
    assert torch.autograd.gradcheck(
        lambda x, b: feedback.linear(x, weight.detach(), b, feedback=weight.detach()), (x, bias)
    )


def test_the_classes_of_a_code_are_predicted_by_the_likelihood_of_their_bits():
    objective = CodePrediction(spec_of((12,)), LabelCode(CLASSES, 9))
    nn.init.normal_(objective.weight)
    h = torch.randn(5, 12)
    predicted = objective.predicted_bits(h).detach()
    likelihood = [
        [-F.binary_cross_entropy_with_logits(p, bits, reduction="sum") for bits in objective.code.bits]
        for p in predicted
    ]
    expected = torch.tensor(likelihood).log_softmax(1)
    torch.testing.assert_close(objective.logits(h).log_softmax(1), expected, rtol=1e-4, atol=1e-4)


def test_what_is_scored_is_the_output_or_the_activation():
    spec = spec_of((5, 2, 2), (5, 4, 4))
    assert LinearPrediction(spec).classifier.in_features == 20
    assert LinearPrediction(spec, scored="activation").classifier.in_features == 80
    assert LinearPrediction(spec, zero_classifier=True).classifier.weight.abs().sum() == 0
    with pytest.raises(ValueError, match="scored: must be 'output' or 'activation', got 'input'"):
        LinearPrediction(spec, scored="input")


def test_a_weighted_sum_adds_its_parts_and_refuses_what_does_not_go_together():
    spec = spec_of((12,))
    prediction, similarity = LinearPrediction(spec), SimilarityMatching(spec)
    both = WeightedSum({"prediction": (0.5, prediction), "similarity": (1, similarity)})
    h = torch.randn(5, 12)
    batch = LocalBatch(Y, h)
    score = both(h, batch)
    expected = 0.5 * prediction(h, batch).loss + similarity(h, batch).loss
    torch.testing.assert_close(score.loss, expected)
    assert torch.equal(score.logits, prediction.logits(h))
    assert torch.equal(both.logits(h), prediction.logits(h))
    assert set(score.logs) == {"prediction_loss", "similarity_loss", "bound_nats"}
    assert WeightedSum({"similarity": (1, similarity)}).logits(h) is None
    with pytest.raises(ValueError, match="prediction: its weight must be positive and finite, got 0"):
        WeightedSum({"prediction": (0, prediction)})
    with pytest.raises(ValueError, match="must score the same of one block"):
        WeightedSum({"a": (1, prediction), "b": (1, SimilarityMatching(spec, scored="activation"))})
    with pytest.raises(ValueError, match="need at least one objective"):
        WeightedSum({})


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_images_of_every_size_are_drawn_of_every_output(shape: tuple[int, ...]):
    objective = Reconstruction(spec_of(shape), (3, 7, 6))
    h = torch.randn(5, *shape)
    assert objective.reconstruct(h).shape == (5, 3, 7, 6)
    with pytest.raises(ValueError, match="the batch must carry the images"):
        objective(h, LocalBatch(Y, h))
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\].*got -1 to 2; set rule\.normalisation"):
        objective(h, LocalBatch(Y, h, torch.linspace(-1, 2, 5 * 3 * 7 * 6).view(5, 3, 7, 6)))


@pytest.mark.parametrize(("width", "expected"), [(16, (32, 2)), (32, (64, 2)), (64, (64, 1)), (48, (64, 2))])
def test_a_head_widens_up_to_the_widest_block(width: int, expected: tuple[int, int]):
    head = ConvolutionalHead((width, 8, 8), 10, num_convolutions=1, num_linear=2, widest=64)
    assert (head.convolutions[0].out_channels, head.convolutions[0].stride[0]) == expected
    assert [layer.out_features for layer in head.linear if isinstance(layer, nn.Linear)] == [128, 10]


def test_a_loss_of_weight_zero_has_no_parameters_and_no_prediction():
    net = localprop.models.vgg8b((1, 16, 16), CLASSES, width=0.03)
    x = torch.rand(2, 1, 16, 16)
    published = {"reconstruction_first": 5, "task_first": 0, "reconstruction_last": 0, "task_last": 1}
    rule = localprop.methods.build("infopro-softmax", net, num_classes=CLASSES, example=x, **published)
    parts = [list(objective.parts) for objective in list(rule.objectives)[:-1]]
    assert parts == [["reconstruction"], *[["task", "reconstruction"]] * 5, ["task"]]
    assert [logits is None for logits in rule.exits(x)] == [True, *[False] * 7]
    assert isinstance(rule.objectives[-1], CrossEntropy)
    assert linear_schedule(5, 0, 6) == [5, 4, 3, 2, 1, 0]
    assert linear_schedule(5, 0, 1) == [5]
    with pytest.raises(ValueError, match="block 'conv1' has weight 0 for both losses; raise one"):
        localprop.methods.build(
            "infopro-softmax", net, num_classes=CLASSES, example=x, task_first=0, reconstruction_first=0
        )


def test_a_head_that_normalises_refuses_a_batch_of_one():
    net = localprop.LocalNetwork([nn.Conv2d(1, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, CLASSES))])
    x = torch.rand(2, 1, 8, 8)
    rule = localprop.methods.build("infopro-softmax", net, num_classes=CLASSES, example=x)
    with pytest.raises(ValueError, match="batch normalisation cannot train on a batch of one sample"):
        next(iter(rule.steps(x[:1], Y[:1])))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("predsim", {"beta": 1.0}, r"beta: must lie between 0 and 1, got 1\.0; pred and sim are the two ends"),
        ("pred-bpf", {"code_width": 0}, "code_width: must be at least 1, got 0"),
        ("sim-bpf", {"feature_budget": 0}, "feature_budget: must be at least 1, got 0"),
        ("sim", {"scored": "h"}, "scored: must be 'output' or 'activation', got 'h'"),
        ("contrast", {"temperature": 0.0}, r"temperature: must be positive and finite, got 0\.0"),
        ("contrast", {"embedding_width": 0}, "embedding_width: must be at least 1, got 0"),
        ("contrec", {"reconstruction_weight": -1.0}, "reconstruction: its weight must be positive and finite"),
        ("infopro-softmax", {"head": "3c1f"}, r"head: must be one of \['0c1f'.*got '3c1f'"),
        ("infopro-softmax", {"temperature": 1.0}, "temperature: not a setting of method 'infopro-softmax'"),
        ("infopro-contrast", {"task_last": -1.0}, r"task_last: a weight must be 0 or more and finite, got -1\.0"),
    ],
)
def test_settings_out_of_their_range_are_refused(method: str, settings: dict, message: str):
    net = localprop.models.fc((1, 4, 4), CLASSES, hidden=16)
    with pytest.raises(ValueError, match=message):
        localprop.methods.build(method, net, num_classes=CLASSES, example=torch.zeros(2, 1, 4, 4), **settings)
