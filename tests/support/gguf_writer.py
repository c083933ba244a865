"""Ends what the package `gguf` writes."""

from __future__ import annotations

from typing import Any


def finish(writer: Any) -> None:
    """Writes what a writer was given, and closes it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
