"""What is under test: model JSON, checkpoint, mmdet module, ONNX export and typed graphs."""
