"""The twin of target propagation, against numbers worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.by_hand import close, hidden, linear, randn, tensor
from tests.reference import target as twin

Y = torch.tensor([0, 2, 1])


X = randn(3, 5, seed=1)
BLOCKS = [hidden, hidden, linear]
PARAMS = [[randn(4, 5, seed=2)], [randn(4, 4, seed=3)], [randn(3, 4, seed=4)]]
CHAIN = [[randn(4, 4, seed=5)], [randn(4, 3, seed=6)]]
DIRECT = [[randn(4, 3, seed=7)], [randn(4, 3, seed=8)]]
H1 = hidden(X, PARAMS[0])
H2 = hidden(H1, PARAMS[1])
LOGITS = linear(H2, PARAMS[2])


def test_top_target_follows_each_samples_loss() -> None:
    close(twin.top_target(tensor([[0, 0], [0, 0]]), torch.tensor([0, 1]), 2.0), tensor([[1, -1], [-1, 1]]))
    close(twin.top_target(LOGITS, Y, 0.7), LOGITS - 0.7 * (LOGITS.softmax(1) - F.one_hot(Y, 3)))
    close(twin.label_target(Y, 3), F.one_hot(Y, 3).double())


def test_forward_loss_by_hand() -> None:
    close(twin.forward_loss(tensor([[1, 2], [0, 1]]), tensor([[0, 0], [0, 4]])), tensor((5 + 9) / 4))


def test_targets_by_hand() -> None:
    outputs, top = [tensor([[10.0]]), tensor([[5.0]]), tensor([[1.0]])], tensor([[2.0]])
    feedbacks, phi = [linear, linear], [[tensor([[2.0]])], [tensor([[3.0]])]]
    values = {rule: twin.propagate_targets(outputs, top, feedbacks, phi, rule) for rule in ("tp", "dtp", "direct-dtp")}
    close(values["tp"], [tensor([[12.0]]), tensor([[6.0]]), top])
    close(values["dtp"], [tensor([[16.0]]), tensor([[8.0]]), top])  # 5 + 3 (2 - 1), then 10 + 2 (8 - 5)
    close(values["direct-dtp"], [tensor([[12.0]]), tensor([[8.0]]), top])  # 10 + 2 (2 - 1)


def test_exact_inverses_make_all_chains_agree() -> None:
    square = [[randn(3, 3, seed=s)] for s in (1, 2, 3)]
    x = randn(2, 3, seed=4)
    inverses = [[torch.linalg.inv(square[i][0])] for i in (1, 2)]
    outputs = twin.forward_outputs([linear] * 3, square, x)
    top = twin.top_target(outputs[-1], torch.tensor([0, 1]), 0.5)
    tp = twin.propagate_targets(outputs, top, [linear] * 2, inverses, "tp")
    torch.testing.assert_close(tp, twin.propagate_targets(outputs, top, [linear] * 2, inverses, "dtp"))
    torch.testing.assert_close(tp[0], linear(tp[1], inverses[0]))


def test_step_in_matrix_form() -> None:
    for rule, phi in (("dtp", CHAIN), ("direct-dtp", DIRECT)):
        step = twin.target_step(BLOCKS, PARAMS, [linear] * 2, phi, X, Y, eta=0.7, rule=rule)
        top = LOGITS - 0.7 * (LOGITS.softmax(1) - F.one_hot(Y, 3))
        t2 = H2 + (top - LOGITS) @ phi[1][0].T
        t1 = H1 + ((t2 - H2) if rule == "dtp" else (top - LOGITS)) @ phi[0][0].T
        close(step.targets, [t1, t2, top])
        close(step.losses[0], (H1 - t1).square().sum(1).mean() / 2)
        close(step.gradients[0], [((H1 - t1) * (1 - H1**2)).T @ X / 3])
        close(step.gradients[1], [((H2 - t2) * (1 - H2**2)).T @ H1 / 3])
        close(step.losses[2], F.cross_entropy(LOGITS, Y))
        close(step.gradients[2], [(LOGITS.softmax(1) - F.one_hot(Y, 3)).T @ H2 / 3])


def test_last_block_by_its_target_is_the_loss_gradient_times_eta() -> None:
    step = twin.target_step(BLOCKS, PARAMS, [linear] * 2, CHAIN, X, Y, eta=0.7, last_by_target=True)
    close(step.gradients[2], [0.7 * (LOGITS.softmax(1) - F.one_hot(Y, 3)).T @ H2 / 3])
    label = twin.target_step(
        BLOCKS, PARAMS, [linear] * 2, CHAIN, X, Y, eta=0.0, top=twin.label_target(Y, 3), last_by_target=True
    )
    close(label.losses[2], (LOGITS - F.one_hot(Y, 3)).square().sum(1).mean() / 2)


def test_reconstruction_by_hand() -> None:
    # f(x) = 2 x, g(y) = 3 y, x = 1, e = 0.5: g(f(1.5)) = 9 against 1.5.
    phi = [tensor([[3.0]]).requires_grad_()]
    loss = twin.reconstruction_loss(linear, [tensor([[2.0]])], linear, phi, tensor([[1.0]]), tensor([[0.5]]))
    close(loss, tensor(7.5**2))
    close(torch.autograd.grad(loss, phi), (tensor([[2 * 7.5 * 3]]),))


def test_difference_reconstruction_by_hand() -> None:
    # -2 e 6 e + (3 d)^2 with e = 0.5 and d = 0.1; in g's weight w: -2 e 2 e w + (w d)^2.
    phi = [tensor([[3.0]]).requires_grad_()]
    loss = twin.difference_reconstruction_loss(
        linear, [tensor([[2.0]])], linear, phi, tensor([[1.0]]), tensor([[0.5]]), tensor([[0.1]])
    )
    close(loss, tensor(-3 + 0.09))
    close(torch.autograd.grad(loss, phi), (tensor([[-1 + 0.06]]),))


def test_feedback_steps() -> None:
    noises, above = [randn(3, 4, seed=10), randn(3, 4, seed=11)], [randn(3, 4, seed=12), randn(3, 3, seed=13)]
    losses, gradients = twin.feedback_step(BLOCKS, PARAMS, [linear] * 2, CHAIN, X, noises)
    noisy = H1 + noises[0]
    read = hidden(noisy, PARAMS[1])
    error = read @ CHAIN[0][0].T - noisy
    close(losses[0], error.square().sum(1).mean())
    close(gradients[0], [2 * error.T @ read / 3])

    losses, _ = twin.feedback_step(BLOCKS, PARAMS, [linear] * 2, CHAIN, X, noises, above)
    difference = (hidden(noisy, PARAMS[1]) - H2) @ CHAIN[0][0].T
    expected = (-2 * (noises[0] * difference).sum(1) + (above[0] @ CHAIN[0][0].T).square().sum(1)).mean()
    close(losses[0], expected)

    losses, gradients = twin.feedback_step(BLOCKS, PARAMS, [linear] * 2, DIRECT, X, noises, direct=True)
    read = linear(hidden(noisy, PARAMS[1]), PARAMS[2])
    error = read @ DIRECT[0][0].T - noisy
    close(losses[0], error.square().sum(1).mean())
    close(gradients[0], [2 * error.T @ read / 3])
