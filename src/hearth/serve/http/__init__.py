"""The HTTP interface: one file per endpoint family, schemas, errors and event streams.

The only package, with `serve.app`, that imports FastAPI.
"""
