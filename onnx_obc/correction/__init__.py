"""Mends what compression did to a model as a whole: the statistics of its values, or all remaining weights."""
