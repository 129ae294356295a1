"""A search around one run: what is varied, what trials are measured on, how they are trained and told apart."""
