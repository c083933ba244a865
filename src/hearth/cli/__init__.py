"""The command line: one thin file per command.

It parses arguments and prints; the work is done by the packages below. Importing it loads none
of them, so that `hearth --help` answers at once.
"""
