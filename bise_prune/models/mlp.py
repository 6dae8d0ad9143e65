"""The multi-layer perceptron of the paper's Multi-Color MNIST experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; the paper's network, 2352-100-100-100-10, has 256,510 parameters.

    Args:
        num_classes: number of classes C.
        in_features: number of values in one input, whatever its shape.
        hidden: widths of the hidden layers.
    """

    def __init__(
        self, num_classes: int = 10, *, in_features: int = 3 * 28 * 28, hidden: Sequence[int] = (100, 100, 100)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        previous = in_features
        for width in hidden:
            layers += [nn.Linear(previous, width), nn.ReLU()]
            previous = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(previous, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """Compute logits (N, num_classes) from inputs (N, ...) with ``in_features`` values each."""
        return self.head(self.body(input))  # type: ignore[no-any-return]
