"""The flowfuse network."""

from flowfuse.model.flowfuse import CONFIGS, FlowFuse, ModelConfig, ModelOutput
from flowfuse.model.inputs import ModelInputs

__all__ = ["CONFIGS", "FlowFuse", "ModelConfig", "ModelInputs", "ModelOutput"]
