"""Serving: composes the engine client and the HTTP interface into one application.

Only `serve.app` and the command line compose the parts.
"""
