"""Direct feedback alignment: the network's error is sent straight to every block by a fixed random matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.feedback import alignment, draw_projection, project, softmax_error
from localprop.functional.precision import at_least_single
from localprop.network import LocalNetwork, body_and_tail, still_statistics
from localprop.rules.backprop import Backprop
from localprop.rules.base import groups_from_the_last
from localprop.types import BlockSpec, BlockStep, Key


class Projection(nn.Module):
    """Send a signal of one number a class to a block's activation by a fixed random matrix; see `draw_projection`.

    Args:
        spec: The block.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", draw_projection(spec.num_classes, spec.activation_shape))

    def forward(self, signal: Tensor, like: Tensor) -> Tensor:
        """Return delta = B signal, in the shape and layout of `like`."""
        return project(signal, self.matrix, like)


class DirectFeedback(Backprop):
    """Train each hidden block by the error of the logits, projected to its activation.

    e = softmax(logits) - onehot(y);  delta_l = B_l signal(e) / N, B_l fixed;  theta_l gets delta_l^T dh_l/dtheta_l.
    The last block gets its true gradient.

    delta_l stands in the place of the loss's gradient at the block's activation, before its closing pooling and
    dropout, so that the derivative of the nonlinearity is applied; a block that cannot be cut there gets it at its
    output. Inside a block of several layers backpropagation is true.

    The error is known when all blocks have run, so hidden blocks run twice: without a graph, then, from the last to
    the first, again with one, under the same dropout masks and batch statistics.

    Args:
        net: The network.
        specs: Its blocks.
        signal: What is projected of the error, such as its sign.

    Shape: B_l (Z, *activation of block l).

    Cost: Z numbers a unit of each hidden activation; no parameters. Alive at a time: the inputs of all blocks, and one
        block's graph. Two forward passes through hidden blocks.

    Note: One forward pass would do if the graphs of all blocks were kept, at the memory of backpropagation.

    References: Nokland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", NeurIPS 2016,
        arXiv:1609.01596; Frenkel, Lefebvre and Bol, "Learning Without Feedback", Frontiers in Neuroscience 2021.
    """

    def __init__(
        self, net: LocalNetwork, specs: Sequence[BlockSpec], signal: Callable[[Tensor], Tensor] = torch.clone
    ) -> None:
        super().__init__(net, specs)
        self.signal = signal
        self.feedback = nn.ModuleList(Projection(spec) for spec in self.specs[:-1])

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block, from the last to the first."""
        return groups_from_the_last(self.net)

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") from the last block to the first; see `Rule.steps`.

        Only the last block has a loss and logits. Logs: where the last block is one linear layer that reads the last
        hidden activation, `alignment_degrees` and `norm_ratio` of its weights and of the matrix in their place.

        Raises:
            ValueError: The batch does not fit, a stretch of blocks is asked for, or a block changes its input in place.
        """
        self.check_whole(x, y, blocks)
        groups = self.parameter_groups()
        self._passes += 1
        with self.cleared_if_abandoned():
            inputs = self._inputs(x)
            last = len(self.net) - 1
            with self.context(last):
                h = self.net.blocks[last](inputs.pop())
            logits = at_least_single(h)
            loss = F.cross_entropy(logits, y)
            if (last, "block") in groups:
                torch.autograd.backward(loss if scale == 1.0 else loss * scale)
            loss, logits = loss.detach(), logits.detach()
            del h
            signal = self.signal(softmax_error(logits, y)) * (scale / len(y))
            if (last, "block") in groups:
                yield BlockStep((last, "block"), loss, logits, logits)
            for index in reversed(range(last)):
                block_input = inputs.pop()
                if (index, "block") in groups:
                    self._train_hidden(index, block_input, signal)
                    yield BlockStep((index, "block"), logs=self._alignment() if index == last - 1 else {})

    @torch.no_grad()
    def _inputs(self, x: Tensor) -> list[Tensor]:
        """Return the inputs of all blocks."""
        inputs = [x.detach()]
        for index, block in enumerate(self.net.blocks[:-1]):
            version = inputs[-1]._version
            with self.context(index):
                inputs.append(block(inputs[-1]))
            if inputs[-2]._version != version:
                raise ValueError(
                    f"net: block {self.net.names[index]!r} changes its input in place, but direct feedback runs it a "
                    "second time; build it with inplace=False"
                )
        return inputs

    def _train_hidden(self, index: int, block_input: Tensor, signal: Tensor) -> None:
        """Run a hidden block again, and send it the signal."""
        body, _ = body_and_tail(self.net.blocks[index])
        with self.context(index), still_statistics(body):
            h = body(block_input)
        torch.autograd.backward(h, self.feedback[index](signal, h.detach()))

    def _alignment(self) -> dict[str, Tensor]:
        """Measure how far the last hidden block's matrix is from the weights it stands in the place of."""
        layers = [module for module in self.net.blocks[-1].modules() if isinstance(module, nn.Linear)]
        projection = self.feedback[-1]
        assert isinstance(projection, Projection)
        matrix = projection.matrix.flatten(1)
        if len(layers) != 1 or layers[0].weight.shape != matrix.shape:
            return {}
        return alignment([layers[0].weight], [matrix])
