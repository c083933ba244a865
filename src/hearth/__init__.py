"""hearth: from a bare machine and a model directory to a tuned, OpenAI-compatible endpoint.

This module stays light on purpose: importing it reads no environment, probes no device and
imports no other part of hearth. The version lives here, once; packaging reads it from this file.
"""

__version__ = "0.1.0"
