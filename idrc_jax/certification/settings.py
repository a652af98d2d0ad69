"""What a certificate depends on, beside scheme, classifier and data."""

from dataclasses import dataclass, field

from idrc_jax.certificates.sampling_plans import PLANS, Fixed, Plan
from idrc_jax.core import validate
from idrc_jax.sampling import random_keys


@dataclass(frozen=True)
class Settings:
    """What a certificate depends on, beside scheme, classifier and data.

    Attributes:
      plan: how the votes of an image are drawn.
      alpha: error probability of each image's certificate.
      seed: of the key tree.
      certificate: "one_sided", "two_sided" or "runner_up" (see `certificates.from_votes`).

    Raises ValueError for a plan that no manifest can name, such as that of a prediction, and for settings under which
    not even unanimous votes could certify.
    """

    plan: Plan = field(default_factory=Fixed)
    alpha: float = 0.001
    seed: int = 0
    certificate: str = "one_sided"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(validate.in_open_unit_interval("alpha", self.alpha)))
        random_keys.check_seed(self.seed)
        if type(self.plan) not in PLANS.values():
            raise ValueError(f"Expected a plan of certificates, one of {', '.join(PLANS)}, got {self.plan!r}.")
        self.plan.check(self.alpha)
