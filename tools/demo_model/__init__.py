"""The built-in model of hearth: its text, its tokenizer, its training and its measurement."""

from pathlib import Path

# The small text model that the phone agent begins with; a Glm4ForCausalLM for tests and benchmarks.
TEXT_MODEL_DIR = Path(__file__).parent / "text_model"
