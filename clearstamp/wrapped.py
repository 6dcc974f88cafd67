"""A model behind an interface, which may change what the model is asked and what it answers."""

from torch import Tensor, nn


class Wrapped(nn.Module):
    """A model that is asked and answers through an interface: inputs ``[n, ...]`` in, logits ``[n, outputs]`` out.

    A subclass changes one or the other, by `asked` and `answered`, and no weight. Answers are float32, as is usual of
    interfaces. Whoever has the weights has the `model` inside; `clearstamp.transposed.graph.unwrapped` takes it out.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.answered(self.model(self.asked(images))).float()

    def asked(self, images: Tensor) -> Tensor:
        """What the model is asked in the place of `images`."""
        return images

    def answered(self, logits: Tensor) -> Tensor:
        """What is answered in the place of the model's logits."""
        return logits
