"""What a job may do: leases and budgets as values.

Nothing in here performs I/O, knows a clock, or imports Trio.
"""
