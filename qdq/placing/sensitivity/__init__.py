"""Which quantization points cost accuracy: one point or group at a time, quantized alone or left out alone."""
