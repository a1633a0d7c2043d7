"""Decoders. A new kind is a new module here and its public names below and in `gorl`."""

from ._base import AbstractDecoder as AbstractDecoder, AbstractDecoderConfig as AbstractDecoderConfig
from ._diffusion import Diffusion as Diffusion, DiffusionDecoder as DiffusionDecoder
from ._flow import FlowDecoder as FlowDecoder, FlowMatching as FlowMatching
from ._gaussian import Gaussian as Gaussian, GaussianDecoder as GaussianDecoder
from ._identity import Identity as Identity, IdentityDecoder as IdentityDecoder
from ._meanflow import MeanFlow as MeanFlow, MeanFlowDecoder as MeanFlowDecoder
from ._schedule import NoiseSchedule as NoiseSchedule
