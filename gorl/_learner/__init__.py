"""Learners. A new one is a new module here and its public names below and in `gorl`."""

from ._base import (
    AbstractEncoder as AbstractEncoder,
    AbstractLearner as AbstractLearner,
    Experience as Experience,
)
from ._encoder import GaussianEncoder as GaussianEncoder
from ._ppo import PPO as PPO
