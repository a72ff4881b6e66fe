"""Language models that predict the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.shapes import Float, Int, Shaped
from lightning_ckptkd.tasks.dense import Tokens

if TYPE_CHECKING:
    from torchmetrics import Metric


class CausalLM(Tokens):
    """The next token of each place: logits (N, L, K), targets (N, L), which are the inputs' ids, not yet shifted.

    The logits of a place are compared with the target of the next one, as the loss of transformers' models does; the
    last logits and the first target are not used. Targets that the dataset has shifted are :class:`Tokens`.

    Args:
        ignore_index: Places whose next target is this one are left out of losses, metrics and I(Y;F).
        class_weights: What each token of the vocabulary counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "causal_lm"
    expects_each_class: ClassVar[bool] = False

    @override
    def flatten(self, output: Float[Tensor, "*lead N L K"], lead: int = 0) -> Float[Tensor, "*lead P K"]:
        return output[..., :-1, :].flatten(lead, lead + 1)

    @override
    def flatten_targets(self, targets: Shaped[Tensor, "N L"]) -> Int[Tensor, " P"]:
        return targets[:, 1:].reshape(-1).long()

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        super().check(output, targets, model)
        if targets.shape[1] < 2:
            raise ArgumentError(
                f"task=causal_lm needs two tokens or more in a sequence, got targets of shape {tuple(targets.shape)}. "
                "Give longer sequences, or task='multiclass' for one label a sample."
            )

    @override
    def metrics(self, num_classes: int, num_units: int | None = None) -> dict[str, Metric]:
        """``acc`` of the next token, and ``perplexity``, the exponential of its mean cross-entropy."""
        from lightning_ckptkd.tasks.metrics import RowPerplexity  # with torchmetrics, which is slow to import

        perplexity = RowPerplexity(ignore_index=self.ignore_index)
        return {**super().metrics(num_classes, num_units), "perplexity": perplexity}
