"""A multilayer perceptron for small images or feature vectors."""

from __future__ import annotations

from torch import Tensor, nn

from orchestrator.models.classifier import Classifier


def _hidden(in_features: int, width: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout)]


class MLP(Classifier):
    """`depth` hidden layers of `width` units with ReLU and dropout.

    Inputs of any shape [B, ...] are flattened to [B, in_features]; returns logits [B, num_classes].
    """

    def __init__(
        self,
        *,
        in_features: int = 64,
        num_classes: int = 10,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, lr=lr, weight_decay=weight_decay)
        self.save_hyperparameters()
        sizes = [in_features] + [width] * depth
        hidden = [layer for size in sizes[:-1] for layer in _hidden(size, width, dropout)]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits
