"""Who may call, what they may do, and how much of it."""
