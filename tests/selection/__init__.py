"""Costs, criteria and policies: what is trained."""
