"""Which points a sweep has.

grid.py    a sweep's definition -> points (pure)
space.py   what random points are drawn from (pure)
search.py  an adaptive sweep's definition (pure)
"""
