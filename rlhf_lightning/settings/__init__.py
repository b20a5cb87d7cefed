"""The schema of every config section: types, ranges and cross-field rules, without importing torch.

The values are in `conf/`, once each, with their comments; the schema says which values are allowed.
"""
