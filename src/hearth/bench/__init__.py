"""`hearth bench`: puts load on an OpenAI-compatible server and measures what its clients see.

    settings ─ datasets ─▶ Conversation… ─ runner (arrivals, concurrency) ─▶ Record…
    Record… ─ metrics ─▶ Summary ─ report, plot

Client side only: it speaks HTTP and knows nothing of the server's inside, so hearth and others are
measured alike. Names and definitions are those of `vllm bench serve`.
"""
