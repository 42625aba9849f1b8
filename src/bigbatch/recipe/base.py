"""What every section of a recipe is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0, lt=2**63)]


class Section(BaseModel):
    """Frozen, and closed to unknown fields and to NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def check_recipe(self, recipe: Any) -> None:
        """Refuse, by a ValueError, other sections of a `Recipe` that a method's section does not go with."""


def check_inputs(low: float | None, high: float | None) -> None:
    """Refuse bounds of an input's values that are not given together, the lower first."""
    if (low is None) != (high is None) or (low is not None and high is not None and low >= high):
        raise ValueError(f"low = {low}, high = {high}: must be given together, the lower first; or leave out both")
