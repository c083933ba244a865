"""A simulated phone: its screens, its tasks, and an agent that uses it through a server.

Owns the drawing of screens, the state machine behind them, tasks with their success, and a client
of the phone agent's kind. Knows no model and no engine: what answers is any server that speaks
OpenAI's chat completions. Needs Pillow, which is imported where something is drawn.
"""
