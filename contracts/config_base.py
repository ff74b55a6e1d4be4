"""What every section of the configuration file is made of: the base model and the kinds of numbers.

Bounds are part of the schema, so that a number that nothing could compute with is refused in its place.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]

#: Virtual time advances by 2**20 units per token at weight 1: with more weight than that a token would cost nothing.
Weight = Annotated[int, Field(ge=1, le=1_000_000)]
#: Per second. The bounds keep the interval between two requests a whole number of nanoseconds that is not 0.
Rate = Annotated[float, Field(ge=0.001, le=1_000_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
PercentOfSome = Annotated[int, Field(ge=1, le=100)]
#: In the operator's currency; the scheduler counts in millionths of it.
Price = Annotated[float, Field(ge=0, le=1_000_000)]
Cost = Annotated[float, Field(ge=0.000_001, le=1_000_000_000)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
