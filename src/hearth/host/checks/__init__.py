"""What the facts mean for serving: checks as data, each a pure function of facts and needs."""
