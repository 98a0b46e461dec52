"""The one exception tree of the project; every error a user can cause is one of these.

::

    QdqError
    ├── ConfigError       an option, a spec file or a combination of them is wrong        (CLI exit 2)
    ├── ModelError        a checkpoint cannot be found, trusted, read or is not supported
    ├── DataError         a text or label file cannot be used
    ├── CalibrationError  a quantization point has no usable statistics
    ├── ExportError       the module cannot be written as the canonical ONNX graph
    ├── PassError         a lowering pass met a graph it cannot honour
    ├── BuildError        an engine cannot be built from a lowered graph
    │   └── Unavailable   this machine lacks what the target needs                        (CLI exit 3)
    ├── WorkError         a work directory is in use, is none, or lacks what an earlier stage writes
    ├── ParityError       two executions of one graph disagree beyond the tolerance
    ├── DeployError       artifacts or a deployment repository cannot be written or read back
    └── ServeError        a server cannot be started or reached, or refuses a request

Message text: what happened, on which object, what to do about it.
"""

from __future__ import annotations


class QdqError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(QdqError):
    """An option, a spec file or a combination of them is wrong."""


class ModelError(QdqError):
    """A checkpoint cannot be found, trusted, read or is not supported."""


class DataError(QdqError):
    """A text or label file cannot be used."""


class CalibrationError(QdqError):
    """A quantization point has no usable statistics."""


class ExportError(QdqError):
    """The module cannot be written as the canonical ONNX graph."""


class PassError(QdqError):
    """A lowering pass met a graph it cannot honour."""


class BuildError(QdqError):
    """An engine cannot be built from a lowered graph."""


class Unavailable(BuildError):
    """This machine lacks something the target needs; everything before that was done."""


class WorkError(QdqError):
    """A work directory is in use, is none, or lacks what an earlier stage writes."""


class ParityError(QdqError):
    """Two executions of one graph disagree beyond the stated tolerance."""


class DeployError(QdqError):
    """Artifacts or a deployment repository cannot be written or read back."""


class ServeError(QdqError):
    """A server cannot be started or reached, or refuses a request."""
