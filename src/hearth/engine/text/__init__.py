"""Text on its way in and out: tokenizer, chat template, detokenizer and stop strings.

Lives in the front-end process and imports neither torch nor transformers.
"""
