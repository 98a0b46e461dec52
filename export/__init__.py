"""ONNX side: canonical QDQ graph out of an injected module, checked, compared and lowered for a target."""
