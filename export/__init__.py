"""ONNX side: the canonical QDQ graph of an injected module, exported, checked, compared and lowered for a target."""
