"""The built-in model of hearth: its text, its tokenizer, its training and its measurement."""
