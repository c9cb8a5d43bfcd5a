"""Recipes: whole trainings that one command repeats.

`default` makes the shipped bundle. The YAML files are the settings that the field publishes for a backbone and a data
set, and CarGait's; `catalogue` lists and reads them. The field trains on every training identity: here the last of them
validate (`gaitsdk train backbone --validation`), which costs a tenth of the data and shows which weights to keep.
"""
