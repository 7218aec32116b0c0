"""The flowfuse network."""

from flowfuse.model.config import CONFIGS, ModelConfig
from flowfuse.model.flowfuse import FlowFuse, ModelOutput

__all__ = ["CONFIGS", "FlowFuse", "ModelConfig", "ModelOutput"]
