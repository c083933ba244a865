"""KV cache bookkeeping: blocks, prefix hashes. Integers only; the executor owns the memory."""
