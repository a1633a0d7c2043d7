"""Learners. A new one is a new module here and its public names below and in `gorl`."""

from ._base import (
    AbstractEncoder as AbstractEncoder,
    AbstractLearner as AbstractLearner,
    Experience as Experience,
)
from ._clipped import (
    AbstractClippedLearner as AbstractClippedLearner,
    ActorCritic as ActorCritic,
    PolicyTerms as PolicyTerms,
)
from ._dppo import DPPO as DPPO, Chain as Chain, ChainEncoder as ChainEncoder
from ._encoder import GaussianEncoder as GaussianEncoder
from ._fpo import FPO as FPO, FlowDraws as FlowDraws, FlowEncoder as FlowEncoder
from ._ppo import PPO as PPO
from ._reppo import REPPO as REPPO
from ._sac import SAC as SAC
