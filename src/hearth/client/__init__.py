"""hearth as a client: speaks to any OpenAI-compatible server over HTTP.

Owns the wire: connections, server-sent events, and what a refusal says. Never knows what the
answers are for; `bench` measures with it, `cli` talks through it.
"""
