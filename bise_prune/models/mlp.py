"""The multi-layer perceptron of the paper's Multi-Color MNIST experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them. The paper's, 2352-100-100-100-10, has 256,510 parameters.

    Args:
        num_classes: C.
        in_features: entries of one input, whatever its shape.
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
        """Logits (N, num_classes) of inputs (N, ...) with in_features entries each."""
        return self.head(self.body(input))  # type: ignore[no-any-return]
