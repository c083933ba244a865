"""Settings of the machine that matter to serving: what they are, changed and put back."""
