"""The vocabulary of hearth: plain data and errors that every other package speaks.

Owns configuration, errors, events, units, and the data that stages hand each other (ModelSpec,
StepProgram, StepPlan, StepResult, MemoryPlan). Uses the standard library only and imports no
other part of hearth.
"""
