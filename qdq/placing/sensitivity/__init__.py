"""Sensitivity: the accuracy that each quantization point or group costs, quantized alone or left out alone."""
