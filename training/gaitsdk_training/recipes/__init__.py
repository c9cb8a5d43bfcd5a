"""Recipes: whole trainings that one command repeats."""
