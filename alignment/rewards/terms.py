"""What votes carry beside the clips' scores: ties, sides and raters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignment.rewards.heads import HEADS
from alignment.rewards.losses import first_log_tie


class VoteTerms(nn.Module):
    """The log-odds of each vote from the scores' difference d: reliability of the rater * d + pull of the left side.

    Of each member and head its own tie parameter (M, 3) and side (M, 3); of each member the log-reliability of every
    rater (M, R), pulled to 0 by a normal prior of ``rater_deviation``. Terms are learnt so that the scores need not
    explain what is not in the clips; they score nothing themselves."""

    def __init__(
        self, members: int, raters: int, targets: Tensor, *, ties: bool, side: bool, rater_deviation: float
    ) -> None:
        super().__init__()
        self.rater_deviation = rater_deviation
        start = torch.zeros(len(HEADS))
        for column in range(len(HEADS)):
            answers = targets[:, column]
            known = answers[~answers.isnan()]
            if len(known):  # 0.75 is half a tie
                start[column] = first_log_tie(float((1 - (2 * known - 1).abs()).mean()))
        self.log_ties = nn.Parameter(start.repeat(members, 1)) if ties else None
        self.side = nn.Parameter(torch.zeros(members, len(HEADS))) if side else None
        learnt = raters > 1 and rater_deviation > 0  # of one rater alone nothing tells reliability from scale
        self.raters = nn.Parameter(torch.zeros(members, raters)) if learnt else None

    def forward(self, differences: dict[str, Tensor], rater: Tensor, side: Tensor) -> dict[str, Tensor]:
        """{head: log-odds (M, B) that a is preferred}; rater (B,) with -1 for none, side (B,) 1 or 0."""
        found = dict(differences)
        if self.raters is not None:
            known = (rater >= 0).float()
            reliability = torch.exp(self.raters[:, rater.clamp(min=0)] * known)  # (M, B)
            found = {head: values * reliability for head, values in found.items()}
        if self.side is not None:
            found = {head: values + self.side[:, HEADS.index(head), None] * side for head, values in found.items()}
        return found

    def penalty(self) -> Tensor | float:
        """The raters' prior: minus its log-density in nats, (M,), up to a constant."""
        return 0.0 if self.raters is None else (self.raters**2).sum(1) / (2 * self.rater_deviation**2)

    def summary(self) -> dict[str, dict[str, float]]:
        """The members' means in words for reports: nu of ties and pull of the left side in nats by head, and the
        least and greatest reliability of a rater (no rater is named)."""
        found: dict[str, dict[str, float]] = {}
        with torch.no_grad():
            if self.log_ties is not None:
                values = self.log_ties.mean(0).exp().tolist()
                found["ties"] = dict(zip(HEADS, values, strict=True))
            if self.side is not None:
                found["side"] = dict(zip(HEADS, self.side.mean(0).tolist(), strict=True))
            if self.raters is not None:
                reliability = self.raters.mean(0).exp()
                found["raters"] = {"least": float(reliability.min()), "greatest": float(reliability.max())}
        return found
