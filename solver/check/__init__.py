"""Verifies answers against the problems they answer; nothing here shares code with the solvers that made them."""
