"""Calibration: collectors of activation statistics (calibrators), the pass that feeds them (calibrate), its table."""
