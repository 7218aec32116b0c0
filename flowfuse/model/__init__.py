"""The flowfuse network."""

from flowfuse.model.config import CONFIGS, ModelConfig
from flowfuse.model.flowfuse import FlowFuse, ModelOutput
from flowfuse.model.inputs import ModelInputs

__all__ = ["CONFIGS", "FlowFuse", "ModelConfig", "ModelInputs", "ModelOutput"]
