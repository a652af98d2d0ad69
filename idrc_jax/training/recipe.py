"""How long and how fast to train: epochs, batch, optimiser, learning rate."""

from dataclasses import dataclass

import optax

from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are Cohen's (2019) recipe for CIFAR-10.

    Attributes:
      epochs, batch: passes over the training set, and noisy images a step.
      method: "sgd", whose weight decay joins the gradient, or "adam", whose weight decay does not (AdamW).
      lr, momentum, weight_decay: of the method; the decay is on every parameter.
      schedule: "step" multiplies the rate by `step_factor` every `step_epochs`; "cosine" warms up linearly
        for `warmup_epochs` and falls to 0; "onecycle" rises from lr / 25 over `warmup_epochs`, or three tenths of all
        if these are 0, and falls to lr / 250,000, both by a cosine (Smith and Topin 2019, as PyTorch has it).
      sigma_low: if > 0, each image's noise parameter is drawn uniformly from [sigma_low, scheme.sigma].
      augment: random crop (pad 4) and flip; for denoisers flip alone.
    """

    epochs: int = 90
    batch: int = 256
    method: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    step_epochs: int = 30
    step_factor: float = 0.1
    warmup_epochs: float = 0.0
    sigma_low: float = 0.0
    augment: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "step_epochs"):
            validate.count(name, getattr(self, name), 1)
        for name in ("lr", "step_factor"):
            validate.positive(name, getattr(self, name))
        for name in ("momentum", "weight_decay", "warmup_epochs", "sigma_low"):
            validate.at_least(name, getattr(self, name), 0)
        if self.momentum >= 1:
            raise SettingError(f"Expected momentum < 1, got {self.momentum}.", "momentum")
        validate.one_of("method", self.method, ("sgd", "adam"))
        validate.one_of("schedule", self.schedule, ("step", "cosine", "onecycle"))
        if self.schedule != "step" and self.warmup_epochs >= self.epochs:
            raise SettingError(
                f"Expected warmup_epochs < epochs = {self.epochs}, got {self.warmup_epochs}.", "warmup_epochs", "epochs"
            )

    def learning_rate(self, steps_per_epoch: int) -> optax.Schedule:
        """The rate as a function of the step."""
        if self.schedule == "cosine":
            warmup = round(self.warmup_epochs * steps_per_epoch)
            return optax.warmup_cosine_decay_schedule(
                0.0 if warmup else self.lr, self.lr, warmup, self.epochs * steps_per_epoch
            )
        if self.schedule == "onecycle":
            rise = self.warmup_epochs / self.epochs or 0.3
            return optax.cosine_onecycle_schedule(self.epochs * steps_per_epoch, self.lr, rise)
        drops = range(self.step_epochs, self.epochs, self.step_epochs)
        return optax.piecewise_constant_schedule(
            self.lr, {epoch * steps_per_epoch: self.step_factor for epoch in drops}
        )

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """SGD as PyTorch has it (decay joins the gradient before the momentum), or AdamW."""
        rate = self.learning_rate(steps_per_epoch)
        if self.method == "adam":
            return optax.adamw(rate, self.momentum, weight_decay=self.weight_decay)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, self.momentum))
