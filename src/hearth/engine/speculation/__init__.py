"""Speculation: drafts of the next tokens, taken from the text so far and verified by the model."""
