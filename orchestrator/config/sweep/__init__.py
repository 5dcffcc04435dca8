"""The points of a sweep.

grid.py    a sweep's definition -> points (pure)
space.py   the distributions that random points are drawn from (pure)
search.py  an adaptive sweep's definition (pure)
"""
