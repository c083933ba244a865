"""The CPU backend: finds and loads the C++ library and runs step programs through it.

The library lies beside this file. It imports neither torch nor transformers; where the library
was not built, loading says so and names the way out.
"""
