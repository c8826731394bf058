"""Takes nothing; gives simulated runtimes for tests of engine adapters on machines without the hardware.

What runs here is called "simulated" wherever it appears, computes through ONNX Runtime on the CPU, and is no evidence
of what a real device does: it proves that an adapter keeps to the rules of its runtime, and nothing about speed.
"""
