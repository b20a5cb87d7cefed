"""The schema of every config section: types, ranges and cross-field rules, with no torch in sight.

The values stand in `conf/`, once each, with their comments; here stands what values are allowed.
"""
