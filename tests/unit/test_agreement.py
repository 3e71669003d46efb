"""How exits agree, on predictions that are known."""

from __future__ import annotations

import torch

from localprop.infer.agreement import agreements, stays_right

Y = torch.tensor([0, 1, 2, 0, 1])
PREDICTED = torch.tensor(
    [
        [0, 1, 0, 1, 2],  # right on samples 0 and 1
        [0, 2, 2, 1, 2],  # unlearned 1, learned 2
        [0, 1, 2, 2, 2],
    ]
)


def test_what_stays_right():
    assert stays_right(PREDICTED, Y) == [50.0, 100.0, 100.0]
    assert stays_right(torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 1, 0]]), Y) == [None, 100.0]


def test_samples_by_the_exits_that_agree():
    assert agreements(PREDICTED, Y) == [
        {"exits": 1, "share": 20.0, "error": 100.0},
        {"exits": 2, "share": 40.0, "error": 0.0},
        {"exits": 3, "share": 40.0, "error": 50.0},
    ]
    assert agreements(Y[None], Y) == [{"exits": 1, "share": 100.0, "error": 0.0}]
