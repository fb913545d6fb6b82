"""Whether two models are the same, by the logits that their answers are said from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmft.chat.encode import IGNORED, Encoder, Row

if TYPE_CHECKING:
    import torch

# Of the largest logit. In few bits the two round at different places: by 0.016 (8 layers, 58 M random weights) to 0.030
# (28 layers, 418 M) in bfloat16.
TOLERANCE = {"float32": 1e-4}
TOLERANCE_IN_FEW_BITS = 0.05
LOST = 0.5  # of what the adapter does, from which on rounding may have lost it


@dataclass(frozen=True)
class Parity:
    """How the exported model's logits differ from the run's, at the places from which answers are said.

    `largest` is the largest difference, `scale` the largest logit and `effect` what the adapter changes at most (None
    without one); `lost` is the difference as a share of that effect, both as root mean squares. `tied` counts first
    tokens of an answer that differ, though no further than the rounding goes, and `moved` those that differ by more.
    """

    dtype: str
    places: int
    same_top: int
    largest: float
    scale: float
    effect: float | None
    lost: float
    tied: int
    moved: int

    @property
    def tolerance(self) -> float:
        return TOLERANCE.get(self.dtype, TOLERANCE_IN_FEW_BITS)

    def describe(self) -> str:
        changes = "" if self.effect is None else f"; the adapter changes them by up to {self.effect:.2g}"
        return (
            f"logits in {self.dtype} differ by at most {self.largest:.2g} of {self.scale:.3g}{changes}; "
            f"the likeliest token is the same at {self.same_top} of {self.places} places"
        )

    def problem(self) -> str | None:
        """Why the two are not the same model; None where they are."""
        allowed = self.tolerance * self.scale
        if not self.largest <= allowed:  # nan is not, either
            more = "" if self.dtype in TOLERANCE else "; --dtype float32 rounds less, in twice the space"
            return (
                f"logits in {self.dtype} differ by up to {self.largest:.2g}, and rounding explains {allowed:.2g}{more}"
            )
        if self.moved:
            return f"{self.moved} answers begin with another token"
        if self.lost > LOST:
            return (
                f"the rounding of {self.dtype} is {100 * self.lost:.0f} % of what the adapter does, which may be lost "
                "in it; --dtype float32 keeps it, in twice the space"
            )
        return None


def logits(model: Any, encoder: Encoder, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Of each row the logits that its answer is said from, in float32 on the CPU, of shape (tokens, vocabulary)."""
    import torch

    from vlmft.chat.collate import collate, for_model

    found = []
    for row in rows:
        batch = for_model(encoder, collate(encoder, [row], padding_side="right"), model.device, model.dtype)
        said = batch.pop("labels")[0, 1:] != IGNORED
        with torch.inference_mode():
            found.append(model(**batch, use_cache=False).logits[0, :-1][said].float().cpu())
    return found


def compare(
    trained: Sequence[torch.Tensor],
    exported: Sequence[torch.Tensor],
    without: Sequence[torch.Tensor] | None,
    dtype: str,
) -> Parity:
    """How `exported` logits differ from `trained` ones; `without` are those of the base without the adapter."""
    import torch

    one, other = torch.cat(list(trained)), torch.cat(list(exported))
    change = None if without is None else one - torch.cat(list(without))
    largest, scale = (one - other).abs().max().item(), one.abs().max().item()
    tied = moved = 0
    for ours, theirs in zip(trained, exported, strict=True):
        first, now = ours[0].argmax(), theirs[0].argmax()
        near = bool(ours[0][first] - ours[0][now] <= 2 * largest)
        tied, moved = tied + bool(first != now and near), moved + (not near)
    return Parity(
        dtype, len(one), int((one.argmax(1) == other.argmax(1)).sum()), largest, scale,
        effect=None if change is None else change.abs().max().item(),
        lost=0.0 if change is None else ((one - other).norm() / change.norm()).item(),
        tied=tied, moved=moved,
    )  # fmt: skip
