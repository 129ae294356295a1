"""Training on clusters that are not there: what a step and an exchange cost, and what many workers make of it."""
