"""What changes during a run, as functions of the step: learning rate, consistency weight, decay, when to evaluate."""

import math
from dataclasses import dataclass

from mtkernels import schedules

from .config import Config
from .ramps import cosine_rampdown, linear_rampup, sigmoid_rampdown, sigmoid_rampup


@dataclass(frozen=True)
class Timeline:
    """A run's settings, and how many steps make an epoch. Steps count from 0."""

    config: Config
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Length of the training."""
        return self._steps(self.config.length)

    def learning_rate(self, step: int) -> float:
        """Ramped up, times the cosine to 0 at `lr_rampdown`, times the sigmoid of the last `sigmoid_rampdown`."""
        config, at = self.config, self._at(step)
        if config.lr_rampup_shape == "sigmoid":
            rate = config.lr * sigmoid_rampup(at, config.lr_rampup)
        else:
            rate = config.initial_lr + (config.lr - config.initial_lr) * linear_rampup(at, config.lr_rampup)
        rampdown = config.length if config.lr_rampdown is None else config.lr_rampdown
        return rate * (cosine_rampdown(at, rampdown) if rampdown else 1.0) * self._rampdown(step)

    def consistency_weight(self, step: int) -> float:
        """By the sigmoid ramp-up. In epochs it is a staircase, as published: one weight for all of an epoch."""
        return self.config.consistency * sigmoid_rampup(
            math.floor(self._at(step)), self.config.consistency_rampup
        )

    def adam_betas(self, step: int) -> tuple[float, float]:
        """beta1 falls with the sigmoid ramp-down; beta2 switches at the end of the consistency's ramp-up."""
        config, down = self.config, self._rampdown(step)
        beta1 = down * config.adam_beta1[0] + (1 - down) * config.adam_beta1[1]
        return beta1, config.adam_beta2[self._at(step) >= config.consistency_rampup]

    def ema_decay(self) -> float | schedules.Schedule:
        """The teacher's decay over its updates, as WeightEMA takes it."""
        config = self.config
        if config.ema_decay_rampup is not None:
            return schedules.switched(
                config.ema_decay_rampup, config.ema_decay, at=self._steps(config.consistency_rampup) + 1
            )
        return schedules.running_mean(config.ema_decay) if config.ema_warmup else config.ema_decay

    def evaluates(self, steps_done: int) -> bool:
        """Whether the models are evaluated after that many steps."""
        interval = self._steps(self.config.eval_interval)
        return steps_done == self.steps or bool(interval and steps_done % interval == 0)

    def saves(self, steps_done: int) -> bool:
        """Whether a checkpoint is due after that many steps; the end is not asked about."""
        given = self.config.checkpoint_interval
        if given is None:
            interval = 1000 if self.config.epochs is None else self.steps_per_epoch
        else:
            interval = max(1, self._steps(given)) if given else 0
        return bool(interval) and steps_done % interval == 0

    def _at(self, step: int) -> float:
        return step if self.config.epochs is None else step / self.steps_per_epoch

    def _steps(self, length: float) -> int:
        return round(length if self.config.epochs is None else length * self.steps_per_epoch)

    def _rampdown(self, step: int) -> float:
        return sigmoid_rampdown(self._at(step), self.config.length, self.config.sigmoid_rampdown)
