"""Images of prompts: from the URL in a message to the pixels that the engine reads.

The front end finds an image (`sources`, `fetch`), decodes and resizes it (`decode`, `resize`) and
keeps its pixels in memory that the engine process maps (`pixels`); `loader` does all of that for a
request. The engine makes rows of the vision encoder of them (`patches`). Needs numpy and Pillow,
neither of them before the first image comes.
"""
