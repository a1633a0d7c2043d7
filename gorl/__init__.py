"""Online reinforcement learning of generative policies: an encoder learned by RL, a decoder by regression."""

import importlib.metadata

from . import internal as internal
from ._checkpoint import (
    load_policy as load_policy,
    load_state as load_state,
    save_policy as save_policy,
    save_state as save_state,
)
from ._config import Config as Config
from ._decoder import (
    AbstractDecoder as AbstractDecoder,
    AbstractDecoderConfig as AbstractDecoderConfig,
    Diffusion as Diffusion,
    DiffusionDecoder as DiffusionDecoder,
    FlowDecoder as FlowDecoder,
    FlowMatching as FlowMatching,
    Gaussian as Gaussian,
    GaussianDecoder as GaussianDecoder,
    Identity as Identity,
    IdentityDecoder as IdentityDecoder,
    MeanFlow as MeanFlow,
    MeanFlowDecoder as MeanFlowDecoder,
    NoiseSchedule as NoiseSchedule,
)
from ._demonstrations import Demonstrations as Demonstrations, fit_demonstrations as fit_demonstrations
from ._distillation import distill as distill
from ._divergence import Divergence as Divergence
from ._env import (
    Command as Command,
    EnvConfig as EnvConfig,
    Environment as Environment,
    EpisodeState as EpisodeState,
    EpisodicEnv as EpisodicEnv,
    MujocoEnv as MujocoEnv,
    MujocoState as MujocoState,
    MultiGoal as MultiGoal,
    StepResult as StepResult,
    environments as environments,
    load_environment as load_environment,
    observation_parts as observation_parts,
    placeholder_meshes as placeholder_meshes,
)
from ._errors import (
    DamagedFileError as DamagedFileError,
    InputError as InputError,
)
from ._evaluation import Trajectories as Trajectories, evaluate as evaluate, play as play
from ._export import export_onnx as export_onnx, export_stablehlo as export_stablehlo
from ._extend import extend as extend, lengthen as lengthen
from ._gaussian import log_density as log_density
from ._hyperparameters import (
    float_field as float_field,
    int_field as int_field,
    replace as replace,
    static_field as static_field,
)
from ._iterate import finish as finish, iterate as iterate, precompile as precompile
from ._learner import (
    DPPO as DPPO,
    FPO as FPO,
    PPO as PPO,
    REPPO as REPPO,
    SAC as SAC,
    AbstractClippedLearner as AbstractClippedLearner,
    AbstractEncoder as AbstractEncoder,
    AbstractLearner as AbstractLearner,
    ActorCritic as ActorCritic,
    ChainEncoder as ChainEncoder,
    Experience as Experience,
    FlowEncoder as FlowEncoder,
    GaussianEncoder as GaussianEncoder,
    PolicyTerms as PolicyTerms,
)
from ._method import Method as Method, methods as methods, register as register
from ._network import ConditionalField as ConditionalField, mlp as mlp
from ._ode import Integrator as Integrator
from ._policy import Policy as Policy, StagedDecoder as StagedDecoder
from ._presets import preset as preset, reschedule as reschedule
from ._regression import (
    Fit as Fit,
    FitCurve as FitCurve,
    Refinement as Refinement,
    fit_decoder as fit_decoder,
)
from ._render import Film as Film, render as render
from ._rollout import RolloutState as RolloutState, collect_dataset as collect_dataset, rollout as rollout
from ._schedule import (
    Phase as Phase,
    Schedule as Schedule,
    ScheduleStep as ScheduleStep,
    make_schedule as make_schedule,
)
from ._seeds import of_seed as of_seed
from ._state import (
    Best as Best,
    Curve as Curve,
    EvaluationRecord as EvaluationRecord,
    Result as Result,
    TrainState as TrainState,
)
from ._statistics import RunningStatistics as RunningStatistics
from ._train import train as train
from ._trainable import Constant as Constant

__version__ = importlib.metadata.version("gorl")
