"""The pipeline from a published detector to a verdict; imports nothing from pytest."""

__version__ = "0.1.0"
