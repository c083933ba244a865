"""The engine: scheduler, KV cache and executor in a process of their own, and its client."""
