"""What is said: envelopes, messages, errors and ids, as values and bytes.

Nothing in here performs I/O, knows a clock, or imports Trio; everything can be used by a program
that speaks ARCP over a transport of its own.
"""
