"""What runs: each job is an actor that owns its state, its mailbox and its agent's cancel scope."""
