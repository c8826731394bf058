"""What runs a model: one module per engine, from an ONNX graph (or the torch module) to an engine file to a Session."""

from harness.engines.base import Capabilities, Engine, Inspection, Session, Source
from harness.engines.table import ENGINES, get_engine

__all__ = ["ENGINES", "Capabilities", "Engine", "Inspection", "Session", "Source", "get_engine"]
