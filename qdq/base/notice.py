"""Level of log messages that announce what takes long, such as a download: shown by a run, and no warning."""

from __future__ import annotations

import logging

NOTICE = (logging.INFO + logging.WARNING) // 2
