"""Runtime side: ONNX files in, built, verified, timed and deployed engines out."""
